"""Bad input: the exit code, one line on standard error, and no weight read where the fault was visible before."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from lorasmith.attach import attach, save_adapter
from lorasmith.methods.lora import LoraConfig
from lorasmith.models.load import load
from lorasmith.models.tensor_file import StoredTensor


@pytest.fixture
def reads(monkeypatch):
    """Names of the weights that were read."""
    names = []
    read = StoredTensor.read

    def spied(self):
        names.append(self.name)
        return read(self)

    monkeypatch.setattr(StoredTensor, "read", spied)
    return names


@pytest.fixture
def model(model_folder, tmp_path):
    """A copy of the model folder to damage."""
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


def write_jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def train(lorasmith, data_file, tmp_path):
    """Trains two steps and returns the one line of the error with the exit code."""

    def call(model, *arguments, data=data_file):
        answer = lorasmith(
            *("train", "--model", model, "--data", data, "--output", tmp_path / "run", "--max-steps", 2),
            *("--batch-size", 2, "--set", "evaluation.samples=0", *arguments),
        )
        return answer

    return call


def refused(answer, code, *parts):
    """Asserts one line with all parts, and the exit code."""
    lines = answer.err.strip().splitlines()
    assert answer.code == code, answer.err
    assert len(lines) == 1, answer.err
    for part in parts:
        assert part in lines[0], lines[0]


def test_the_fixture_model_trains(train, model, reads):
    # or every refusal below could have another reason
    answer = train(model)
    assert answer.code == 0, answer.err
    assert "lm_head.weight" in reads


def test_a_missing_model_folder(train, reads, tmp_path):
    refused(train(tmp_path / "nowhere"), 2, "nowhere does not exist")
    assert not reads


def test_a_truncated_safetensors_file(train, model, reads):
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(train(model), 2, "model.safetensors is truncated")
    assert not reads


def test_a_corrupt_safetensors_header(train, model, reads):
    weights = model / "model.safetensors"
    weights.write_bytes(b"\x10" + bytes(7) + b"no json at all.." + weights.read_bytes())
    refused(train(model), 2, "model.safetensors", "damaged")
    assert not reads


def test_a_pickle_instead_of_safetensors(train, model, reads):
    (model / "model.safetensors").unlink()
    torch.save({"x": torch.zeros(1)}, model / "pytorch_model.bin")
    refused(train(model), 2, "pytorch_model.bin", "pickle")
    assert not reads


def test_an_unknown_recipe_key(lorasmith, model, data_file, reads, tmp_path):
    recipe = tmp_path / "my.yaml"
    recipe.write_text(f"model: {model}\ndata: {data_file}\ntraining: {{learnin_rate: 1}}\n")
    refused(lorasmith("train", recipe), 2, "my.yaml", "training.learnin_rate", "'learning_rate'")
    assert not reads


def test_a_jsonl_line_that_is_no_json(train, model, data_file, reads):
    lines = data_file.read_text().splitlines()
    data_file.write_text("\n".join([*lines[:3], '{"prompt": "cut of', *lines[3:]]))
    refused(train(model), 2, "train.jsonl", "line 4")
    assert not reads


def test_a_record_with_no_text(train, model, data_file, reads):
    records = [json.loads(line) for line in data_file.read_text().splitlines()]
    records[2]["completion"] = ""
    write_jsonl(data_file, records)
    refused(train(model), 2, "train.jsonl", "line 3", "completion")
    assert not reads


def test_an_empty_data_set(train, model, data_file, reads):
    data_file.write_text("")
    refused(train(model), 2, "train.jsonl", "empty")
    assert not reads


def test_all_labels_masked(train, model, data_file, reads):
    # the prompt alone fills what an example may have
    write_jsonl(data_file, [{"prompt": "the cat sees a dog " * 8, "completion": "."}] * 4)
    refused(train(model, "--max-length", 8), 2, "all labels are masked", "max_length")
    assert not reads


def test_target_modules_that_match_nothing(train, model, reads):
    refused(train(model, "--target", "q_prj"), 2, "q_prj", "'q_proj'")
    assert not reads


@pytest.mark.parametrize("option", ["method.target_modules=q_proj(", "quantization.skip=[q_proj(]"])
def test_an_expression_that_does_not_compile(train, model, reads, option):
    field, _ = option.split("=")
    refused(train(model, "--set", option), 2, field, "'q_proj('", "no regular expression")
    assert not reads


def test_an_expression_for_quantize_that_does_not_compile(lorasmith, model, reads, tmp_path):
    refused(lorasmith("quantize", model, "--out", tmp_path / "q", "--skip", "head("), 2, "skip", "'head('")
    assert not reads


def test_skipping_a_module_that_there_is_not(train, lorasmith, model, reads, tmp_path):
    refused(train(model, "--set", "quantization={skip: [q_prj]}"), 2, "skip", "'q_prj'", "Did you mean 'q_proj'")
    refused(lorasmith("quantize", model, "--out", tmp_path / "q", "--skip", "q_prj"), 2, "skip", "'q_prj'")
    assert not reads


def test_a_block_size_for_a_format_without_blocks(train, lorasmith, model, reads, tmp_path):
    quantize = lorasmith("quantize", model, "--out", tmp_path / "q", "--format", "int8", "--blocksize", 128)
    refused(quantize, 2, "blocksize=128", "int8")
    refused(train(model, "--set", "quantization={format: int8, blocksize: 128}"), 2, "blocksize=128", "int8")
    assert not reads


def test_an_adapter_of_another_shape(lorasmith, adapter, reads):
    weights = adapter / "adapter_model.safetensors"
    tensors = {name: value[..., :-1].contiguous() for name, value in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    answer = lorasmith("generate", adapter, "the cat", "--max-new-tokens", 1)
    refused(answer, 2, "adapter_model.safetensors", "shape", "q_proj.lora_A")
    assert not reads


def test_an_adapter_of_a_kind_that_is_not_built(lorasmith, adapter, reads):
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"peft_type": "FROM_AFAR"}))
    refused(lorasmith("generate", adapter, "the cat"), 2, "FROM_AFAR", "supported: adalora, bitfit")
    assert not reads


def test_fields_of_another_version_are_told_once(lorasmith, adapter):
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"brand_new_field": 7}))
    answer = lorasmith("generate", adapter, "the cat", "--max-new-tokens", 1)
    assert answer.code == 0
    assert answer.err.count("brand_new_field") == 1


def deny(monkeypatch, code, below):
    """Lets every write below a folder fail as the operating system would."""
    replace = os.replace

    def denied(source, target, **options):
        if Path(target).is_relative_to(below):
            raise OSError(code, os.strerror(code), str(target))
        return replace(source, target, **options)

    monkeypatch.setattr("os.replace", denied)


def test_no_permission_to_write_the_run(train, model, reads, monkeypatch, tmp_path):
    deny(monkeypatch, errno.EACCES, tmp_path)
    refused(train(model), 1, "no write permission")
    assert not reads


def test_a_disk_that_is_full_before_the_run(train, model, reads, monkeypatch, tmp_path):
    deny(monkeypatch, errno.ENOSPC, tmp_path)
    refused(train(model), 1, "the disk is full")
    assert not reads


def test_a_disk_that_fills_up_at_the_checkpoint(train, model, monkeypatch, tmp_path):
    deny(monkeypatch, errno.ENOSPC, tmp_path / "run" / "checkpoints")
    answer = train(model)
    assert answer.code == 1
    assert answer.err.strip().splitlines()[-1].startswith("error: ")
    assert "the disk is full" in answer.err
    assert not list((tmp_path / "run" / "checkpoints").iterdir()), "half a checkpoint was left behind"


@pytest.mark.parametrize("command", ["merge", "quantize"])
def test_a_disk_that_is_full_for_the_other_writers(lorasmith, model, reads, monkeypatch, tmp_path, command):
    subject = model
    if command == "merge":
        loaded = load(model)
        attach(loaded.model, LoraConfig(r=2, target_modules=["q_proj"], base_model_name_or_path=str(model)))
        save_adapter(loaded.model, tmp_path / "adapter")
        subject = tmp_path / "adapter"
        reads.clear()
    deny(monkeypatch, errno.ENOSPC, tmp_path)
    refused(lorasmith(command, subject, "--out", tmp_path / "out"), 1, "the disk is full")
    assert not reads


@pytest.fixture
def adapter(model, reads, tmp_path):
    """The folder of a fresh adapter on model."""
    loaded = load(model)
    attach(loaded.model, LoraConfig(r=2, target_modules=["q_proj"], base_model_name_or_path=str(model)))
    save_adapter(loaded.model, tmp_path / "adapter")
    reads.clear()
    return tmp_path / "adapter"


@pytest.mark.parametrize("place", ["itself", "above", "file", "here"])
@pytest.mark.parametrize("command", ["merge", "quantize"])
def test_nothing_that_stands_at_out_is_overwritten(
    lorasmith, model, adapter, reads, monkeypatch, tmp_path, command, place
):
    subject = adapter if command == "merge" else model
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    out = {"itself": subject, "above": tmp_path, "file": tmp_path / "notes.txt", "here": "."}[place]
    before = sorted(tmp_path.rglob("*"))
    refused(lorasmith(command, subject, "--out", out), 2, str(Path(out).resolve()), "name a new folder")
    assert sorted(tmp_path.rglob("*")) == before
    assert not reads


def test_nan_in_the_weights(train, model):
    weights = model / "model.safetensors"
    tensors = load_file(weights)
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name][0, 0] = float("nan")
    save_file(tensors, weights, metadata={"format": "pt"})
    refused(train(model), 2, name, "NaN")


def test_a_loss_that_turns_nan_keeps_the_last_good_checkpoint(train, model, tmp_path):
    # the second step multiplies the adapter by 1e30, the third overflows
    answer = train(
        model,
        "--max-steps",
        6,
        "--lr",
        "1e30",
        "--set",
        "training.clip=null",
        "--set",
        "training.save_every=1",
        "--set",
        "training.warmup=0",
    )
    last = answer.err.strip().splitlines()[-1]
    assert answer.code == 1
    assert last.startswith("error: ")
    assert "last good checkpoint is" in last
    kept = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert str(kept[-1]) in last
    assert all(tensor.isfinite().all() for tensor in load_file(kept[-1] / "trainable.safetensors").values())


def with_code_(model, tmp_path):
    """Puts code into the model folder; returns the file that it makes when it runs."""
    mark = tmp_path / "it ran"
    (model / "modeling_x.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        f"open({str(mark)!r}, 'w').close()\nclass X(LlamaConfig): pass\nclass Y(LlamaForCausalLM): config_class = X\n"
    )
    config = json.loads((model / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "modeling_x.X", "AutoModelForCausalLM": "modeling_x.Y"}
    (model / "config.json").write_text(json.dumps(config))
    return mark


def test_code_in_a_model_folder(train, model, reads, tmp_path):
    mark = with_code_(model, tmp_path)
    refused(train(model), 2, "modeling_x.py", "trust-remote-code")
    assert not reads
    assert not mark.exists()


def test_an_internal_error_is_one_line_that_says_how_to_see_more(lorasmith, model, monkeypatch):
    def broken(*arguments, **options):
        raise KeyError("surprise")

    monkeypatch.setattr("lorasmith.recipes.inspection.open_checkpoint", broken)
    refused(lorasmith("inspect", model), 1, "internal error: KeyError", "LORASMITH_DEBUG=1")


def test_an_interrupt_is_one_line(lorasmith, model, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("lorasmith.recipes.inspection.open_checkpoint", interrupted)
    refused(lorasmith("inspect", model), 1, "interrupted")


def test_a_folder_that_holds_a_run_is_not_overwritten(train, model, tmp_path):
    assert train(model).code == 0
    refused(train(model), 2, "already holds a run")


def test_resume_takes_no_other_settings(train, lorasmith, model, tmp_path):
    assert train(model).code == 0
    refused(lorasmith("train", "--resume", tmp_path / "run", "--lr", 1), 2, "training.learning_rate cannot be given")


def test_a_device_that_is_not_there(train, model, reads):
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    refused(train(model, "--device", "cuda"), 2, "cuda", "--device auto")
    assert not reads


@pytest.fixture
def gpt2(model, tmp_path):
    """A model whose positions are a table: there is no row beyond the last one."""
    folder = tmp_path / "gpt2"
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=32, n_layer=1, n_head=2, n_positions=16)).save_pretrained(folder)
    return folder


def test_a_prompt_longer_than_the_models_positions(lorasmith, gpt2):
    refused(lorasmith("generate", gpt2, "the cat sees a fish . " * 9), 2, "16 positions", "shorten")


def test_an_answer_ends_where_the_models_positions_end(lorasmith, gpt2):
    answer = lorasmith("generate", gpt2, "the cat", "--max-new-tokens", 100)
    assert answer.code == 0, answer.err


def test_scoring_cuts_text_at_the_models_positions_whatever_the_config_calls_them(lorasmith, gpt2, tmp_path):
    write_jsonl(tmp_path / "long.jsonl", [{"text": "the cat sees a fish . " * 9}] * 3)
    answer = lorasmith("evaluate", gpt2, "--data", tmp_path / "long.jsonl")
    assert answer.code == 0, answer.err


def test_scoring_with_rows_longer_than_the_models_positions(lorasmith, gpt2, reads, tmp_path):
    write_jsonl(tmp_path / "long.jsonl", [{"text": "the cat sees a fish . " * 9}] * 3)
    answer = lorasmith("evaluate", gpt2, "--data", tmp_path / "long.jsonl", "--max-length", 40)
    refused(answer, 2, "max_length=40", "16")
    assert not reads


def test_a_prompt_and_a_file_of_prompts(lorasmith, model, reads, tmp_path):
    (tmp_path / "prompts.txt").write_text("the cat\n")
    refused(lorasmith("generate", model, "the dog", "--file", tmp_path / "prompts.txt"), 2, "--file")
    assert not reads


@pytest.mark.parametrize("command", ["evaluate", "generate", "merge", "quantize"])
def test_code_in_a_model_folder_runs_when_it_is_asked_for(lorasmith, model, adapter, data_file, tmp_path, command):
    mark = with_code_(model, tmp_path)
    given = {
        "evaluate": (model, "--data", data_file),
        "generate": (model, "the cat", "--max-new-tokens", 2),
        "merge": (adapter, "--out", tmp_path / "out"),
        "quantize": (model, "--out", tmp_path / "out"),
    }[command]
    refused(lorasmith(command, *given), 2, "modeling_x.py", "--trust-remote-code")
    assert not mark.exists()
    answer = lorasmith(command, *given, "--trust-remote-code")
    assert answer.code == 0, answer.err
    assert mark.exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("r", "8"),
        ("r", 8.5),
        ("r", -8),
        ("lora_alpha", None),
        ("lora_dropout", True),
        ("target_modules", 5),
        ("modules_to_save", "lm_head"),
        ("rank_pattern", ["q_proj"]),
    ],
)
@pytest.mark.parametrize("command", ["generate", "evaluate", "merge"])
def test_a_config_whose_fields_are_of_another_kind(
    lorasmith, adapter, reads, data_file, tmp_path, command, field, value
):
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {field: value}))
    more = {"generate": ["the cat"], "evaluate": ["--data", data_file], "merge": ["--out", tmp_path / "out"]}[command]
    refused(lorasmith(command, adapter, *more), 2, "adapter_config.json", field)
    assert not reads


def test_a_tokenizer_that_is_damaged(train, model, reads):
    (model / "tokenizer.json").write_text("{")
    refused(train(model), 2, "the tokenizer in", str(model))
    assert not reads


def test_a_calibration_file_that_is_missing(lorasmith, adapter, reads, tmp_path):
    answer = lorasmith("merge", adapter, "--into", "nf4", "--out", tmp_path / "out", "--calibration", "none.jsonl")
    refused(answer, 2, "none.jsonl")
    assert not reads


def test_a_16_bit_base_of_another_shape(lorasmith, model, adapter, gpt2, reads, tmp_path):
    assert lorasmith("quantize", model, "--out", tmp_path / "nf4").code == 0
    reads.clear()
    common = ("--model", tmp_path / "nf4", "--into", "nf4", "--out", tmp_path / "out")
    refused(lorasmith("merge", adapter, *common, "--base-16bit", gpt2), 2, "--base-16bit", "another model", "q_proj")
    # what tells the number format of the base
    assert all("quant_state" in name for name in reads)


def test_a_file_of_prompts_that_is_missing(lorasmith, model, reads, tmp_path):
    answer = lorasmith("generate", model, "--file", tmp_path / "none.txt")
    refused(answer, 2, f"{tmp_path / 'none.txt'} cannot be read: No such file or directory; name")
    assert not reads


@pytest.mark.parametrize(("field", "value"), [("hidden_size", "wide"), ("num_attention_heads", 7), ("vocab_size", -5)])
@pytest.mark.parametrize("command", ["train", "quantize", "generate"])
def test_a_config_of_impossible_values(lorasmith, train, model, reads, tmp_path, command, field, value):
    config = model / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {field: value}))
    if command == "train":
        answer = train(model)
    else:
        answer = lorasmith(command, model, *(["--out", tmp_path / "out"] if command == "quantize" else ["the cat"]))
    refused(answer, 2, str(config))
    # where transformers alone finds out, the class of the model is made before a weight is read
    assert not reads


@pytest.mark.parametrize("command", ["generate", "evaluate", "quantize"])
def test_generation_settings_that_are_damaged(lorasmith, model, reads, data_file, tmp_path, command):
    (model / "generation_config.json").write_text("{")
    more = {"generate": ["the cat"], "evaluate": ["--data", data_file], "quantize": ["--out", tmp_path / "out"]}[
        command
    ]
    refused(lorasmith(command, model, *more), 2, "generation_config.json cannot be read as JSON")
    assert not reads


def test_an_adapters_generation_settings_that_are_damaged(lorasmith, adapter, reads):
    (adapter / "generation_config.json").write_text("{")
    refused(lorasmith("generate", adapter, "the cat"), 2, str(adapter / "generation_config.json"))
    assert not reads


@pytest.mark.parametrize("command", ["train", "quantize"])
def test_a_folder_inside_a_file(lorasmith, train, model, reads, data_file, tmp_path, command):
    inside = data_file / "folder"
    if command == "train":
        answer = train(model, "--output", inside)
    else:
        answer = lorasmith(command, model, "--out", inside)
    refused(answer, 2, f"{data_file} is a file")
    assert not reads


@pytest.mark.parametrize(("field", "value"), [("vocab_size", 100), ("hidden_size", 64)])
def test_a_config_of_another_model_is_told_by_the_dry_run(train, model, reads, field, value):
    config = model / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {field: value}))
    refused(train(model, "--dry-run"), 2, str(model), "config.json asks for")
    assert not reads


@pytest.mark.parametrize(
    ("option", "named"),
    [
        (["method.name=ia3", "training.optimizer=lorafa"], "training.optimizer: lorafa is for LoRA's factors"),
        (["method.name=ia3", "training.loraplus_lr_ratio=16"], "training.loraplus_lr_ratio is for LoRA's factors"),
        (["method.name=adalora", "method.tinit=100"], "tinit=100 and tfinal=0 leave no step of 2"),
    ],
)
@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_training_that_the_method_has_no_use_for(train, model, reads, option, named, more):
    refused(train(model, *(text for one in option for text in ("--set", one)), *more), 2, named)
    assert not reads


def test_the_allocator_is_told_before_anything_is_read(monkeypatch, lorasmith, tmp_path):
    told = []
    monkeypatch.setattr("lorasmith.cli.train.grow_segments", lambda: told.append(True))
    assert lorasmith("train", tmp_path / "absent.yaml").code == 2
    assert told == [True]
