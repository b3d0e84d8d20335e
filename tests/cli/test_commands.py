import json
import re
import runpy
import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from lorasmith.attach import attach, save_adapter
from lorasmith.cli.table import COMMANDS
from lorasmith.methods.lora import LoraConfig
from lorasmith.models.load import load
from tape import Tape


@pytest.fixture(scope="session")
def adapter_folder(model_folder, tmp_path_factory):
    """An adapter whose B is random, so that it changes every output."""
    folder = tmp_path_factory.mktemp("adapters") / "loud"
    loaded = load(model_folder)
    fields = {
        "r": 4,
        "task_type": "CAUSAL_LM",
        "target_modules": "all-linear",
        "base_model_name_or_path": str(model_folder),
    }
    book = attach(loaded.model, LoraConfig(**fields))
    torch.manual_seed(1)
    for parameter in book.parameters("default"):
        torch.nn.init.normal_(parameter, std=0.3)
    save_adapter(loaded.model, folder)
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(lorasmith, command):
    answer = lorasmith(command, "--help")
    assert answer.code == 0
    assert re.search(rf"Examples?:\s+lorasmith {command}", answer.out)


def test_help_lists_every_command_and_imports_none():
    script = (
        "import sys; from lorasmith.cli.table import COMMANDS, command_group\n"
        "command_group().main(['--help'], standalone_mode=False)\n"
        "assert not [name for name in COMMANDS if f'lorasmith.cli.{name}' in sys.modules]\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert all(command in answer.stdout for command in COMMANDS)


def test_an_unknown_command_names_the_nearest(lorasmith):
    answer = lorasmith("trian")
    assert answer.code == 2
    assert answer.err.count("\n") == 1
    assert "'train'" in answer.err


def test_an_unknown_option_is_one_line(lorasmith):
    answer = lorasmith("inspect", ".", "--tensor")
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert "--tensors" in answer.err


def test_env_names_versions_devices_and_kernels(lorasmith):
    answer = lorasmith("env")
    assert answer.code == 0
    assert f"torch {torch.__version__}" in answer.out
    assert "device cpu" in answer.out
    assert "kernel dequantize_blockwise on cpu: " in answer.out
    assert re.search(r"^triton \S+.* serves ", answer.out, re.MULTILINE)


def test_dry_run_states_recipe_modules_and_memory_and_writes_nothing(lorasmith, model_folder, data_file, tmp_path):
    output = tmp_path / "runs" / "x"
    answer = lorasmith("train", "--model", model_folder, "--data", data_file, "-r", 4, "-o", output, "--dry-run")
    assert answer.code == 0, answer.err
    recipe = yaml.safe_load(answer.out[: answer.out.index("\n\n")])
    assert (recipe["method"]["r"], recipe["quantization"]["format"]) == (4, "nf4")
    assert re.search(
        r"model\.layers\.1\.mlp\.down_proj +32 x 64 +LoRA, rank 4, scaling [\d.]+ +384 trainable", answer.out
    )
    # q and o: 4 (32 + 32), k and v: 4 (32 + 16), the three of the MLP: 4 (32 + 64); two layers
    assert "14 modules; 4,096 of" in answer.out
    assert "predicted peak" in answer.out
    assert not output.exists()


def test_quantize_writes_a_checkpoint_that_inspect_reads(lorasmith, model_folder, tmp_path):
    answer = lorasmith("quantize", model_folder, "--out", tmp_path / "small")
    assert answer.code == 0, answer.err
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "bitsandbytes"
    answer = lorasmith("inspect", tmp_path / "small")
    assert "nf4, blocks of 64, double quantization: 14 weights, 18,432 parameters" in answer.out


@pytest.mark.parametrize("number_format", ["nf4", "fp4", "int4", "int8"])
def test_a_quantized_checkpoint_holds_the_bits_that_loading_with_that_format_gives(
    lorasmith, model_folder, tmp_path, number_format
):
    answer = lorasmith("quantize", model_folder, "--out", tmp_path / "small", "--format", number_format)
    assert answer.code == 0, answer.err
    again = load(tmp_path / "small").model
    tokens = torch.arange(8)[None]
    direct = load(model_folder, scheme=again.model.layers[0].mlp.up_proj.scheme).model
    assert torch.equal(again(tokens).logits, direct(tokens).logits)


def test_merge_writes_the_sum_rounded_once(lorasmith, model_folder, adapter_folder, tmp_path):
    answer = lorasmith("merge", adapter_folder, "--out", tmp_path / "merged", "--dtype", "fp32")
    assert answer.code == 0, answer.err
    before = load_file(model_folder / "model.safetensors")
    adapter = load_file(adapter_folder / "adapter_model.safetensors")
    name = "model.layers.0.mlp.up_proj"
    a, b = (adapter[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").get_submodule(name).weight
    # alpha 8 over rank 4; f32 sums in another order differ in the last bits
    torch.testing.assert_close(merged, before[f"{name}.weight"] + 2 * b @ a, atol=1e-5, rtol=0)


def test_merge_rounds_to_the_type_asked_for(lorasmith, adapter_folder, tmp_path):
    assert lorasmith("merge", adapter_folder, "--out", tmp_path / "merged").code == 0
    tensors = load_file(tmp_path / "merged" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


def test_whole_tensors_trained_beside_quantized_ones_merge_into_the_base_of_the_run(
    lorasmith, model_folder, data_file, tmp_path
):
    run, merged = tmp_path / "run", tmp_path / "merged"
    settings = ("--set", "training.learning_rate=0.1", "--set", "evaluation.samples=0")
    answer = lorasmith(
        *("train", "--model", model_folder, "--data", data_file, "--method", "full", "--max-steps", "1"),
        *("--output", run, *settings),
    )
    assert answer.code == 0, answer.err
    answer = lorasmith("merge", run, "--out", merged, "--dtype", "fp32")
    assert answer.code == 0, answer.err
    assert "its rounding is part of the merged weights" in answer.out
    trained = load_file(run / "adapter" / "adapter_model.safetensors")
    tensors = load_file(merged / "model.safetensors")
    base = load_file(model_folder / "model.safetensors")
    assert torch.equal(tensors["model.norm.weight"], trained["base_model.model.model.norm.weight"])
    assert not torch.equal(tensors["model.norm.weight"], base["model.norm.weight"])


def test_inspect_counts_an_adapters_parameters(lorasmith, adapter_folder):
    answer = lorasmith("inspect", adapter_folder)
    assert answer.code == 0, answer.err
    assert "LORA" in answer.out
    assert "model.layers.(0-1).mlp.down_proj: lora_A.weight 4 x 64, lora_B.weight 32 x 4" in answer.out
    assert "in all: 28 tensors, 4,096 parameters, 16.0 KiB" in answer.out


def test_generate_puts_base_and_adapters_side_by_side(lorasmith, model_folder, adapter_folder):
    answer = lorasmith(
        "generate", model_folder, "the cat", "--base", "--adapter", adapter_folder, "--max-new-tokens", 6
    )
    assert answer.code == 0, answer.err
    base, loud = re.fullmatch(r"\[base\]\n(.*)\n\[loud\]\n(.*)\n", answer.out, flags=re.DOTALL).groups()
    assert base != loud


def test_generate_answers_the_same_from_replayed_steps(lorasmith, model_folder, adapter_folder, monkeypatch):
    command = ["generate", model_folder, "the cat", "--base", "--adapter", adapter_folder, "--max-new-tokens", 6]
    expected, tape = lorasmith(*command), Tape()
    # a GPU that records on a tape
    monkeypatch.setattr("lorasmith.decoding.graphs.CudaGraphs", lambda device: tape)
    for place in ("lorasmith.decoding.graphs", "lorasmith.cli.generate"):
        monkeypatch.setattr(f"{place}.require_cuda", lambda device: None)
    answer = lorasmith(*command, "--cuda-graphs")
    assert (answer.code, answer.out) == (0, expected.out), answer.err
    assert tape.recorded == 2


def test_generate_continues_as_transformers_does(lorasmith, model_folder):
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    tokenizer = load(model_folder).tokenizer
    prompt = tokenizer("the cat", return_tensors="pt")
    expected = model.generate(**prompt, max_new_tokens=6, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    answer = lorasmith("generate", model_folder, "the cat", "--max-new-tokens", 6)
    assert answer.out == tokenizer.decode(expected, skip_special_tokens=True) + "\n"


def test_generate_answers_every_line_of_a_file(lorasmith, model_folder, tmp_path):
    (tmp_path / "prompts.txt").write_text("the cat\n\nthe dog\n")
    answer = lorasmith("generate", model_folder, "--file", tmp_path / "prompts.txt", "--max-new-tokens", 2)
    assert answer.code == 0, answer.err
    assert [line for line in answer.out.splitlines() if line.startswith("> ")] == ["> the cat", "> the dog"]


def test_a_chat_ends_with_an_empty_line(lorasmith, model_folder, monkeypatch):
    lines = iter(["the cat", ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    answer = lorasmith("generate", model_folder, "--max-new-tokens", 2)
    assert answer.code == 0, answer.err


@pytest.mark.parametrize("name", ["train", "training", "base"])
def test_a_folder_may_have_any_name(lorasmith, model_folder, adapter_folder, data_file, tmp_path, name):
    shutil.copytree(adapter_folder, tmp_path / name)
    answer = lorasmith("evaluate", model_folder, "--adapter", tmp_path / name, "--data", data_file)
    assert answer.code == 0, answer.err
    voices = {line.split(":")[0] for line in answer.out.splitlines()}
    assert voices == {"base", f"{name}-adapter"}


def test_prompts_in_json_lines_may_hold_any_separator(lorasmith, model_folder, tmp_path):
    # a byte order mark before, a Unicode line separator inside
    (tmp_path / "prompts.jsonl").write_text('\ufeff{"prompt": "the cat\u2028sees"}\r\n', encoding="utf-8")
    answer = lorasmith("generate", model_folder, "--file", tmp_path / "prompts.jsonl", "--max-new-tokens", 2)
    assert answer.code == 0, answer.err


def test_the_package_runs_as_the_command(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["lorasmith", "env", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("lorasmith", run_name="__main__")
    assert ended.value.code == 0
    assert "Example: lorasmith env" in capsys.readouterr().out


def test_alpha_is_given_by_the_name_that_the_method_has_for_it(lorasmith, model_folder, data_file):
    for method in ("lora", "loha"):
        given = ("--model", model_folder, "--data", data_file, "--method", method, "--alpha", 5, "--dry-run")
        answer = lorasmith("train", *given)
        assert answer.code == 0, answer.err
        assert re.search(r"^  (lora_)?alpha: 5", answer.out, re.MULTILINE)


def test_a_part_of_the_model_is_a_target(lorasmith, model_folder, data_file):
    given = ("--model", model_folder, "--data", data_file, "--target", "attention", "--dry-run")
    answer = lorasmith("train", *given)
    assert answer.code == 0, answer.err
    assert "target_modules: attention" in answer.out
    assert "o_proj" in answer.out and "gate_proj" not in answer.out


def test_a_base_that_is_stored_quantized_is_trained_on_as_it_is(lorasmith, model_folder, data_file, tmp_path):
    stored = tmp_path / "int4"
    assert lorasmith("quantize", model_folder, "--format", "int4", "--blocksize", 32, "--out", stored).code == 0
    given = ("train", "--model", stored, "--data", data_file, "--dry-run")
    answer = lorasmith(*given)
    assert answer.code == 0, answer.err
    assert "quantization: null" in answer.out
    answer = lorasmith(*given, "--quantization", "nf4")
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert "already stored in int4" in answer.err
