"""`lorasmith merge --into`: what it writes, says and refuses."""

import json
import math
import statistics
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from lorasmith.attach import attach, load_adapter, save_adapter
from lorasmith.errors import MergeError
from lorasmith.methods.lora import LoraConfig
from lorasmith.models.load import load
from lorasmith.models.save import save_quantized
from lorasmith.quantized import Scheme

WORDS = ["cat", "dog", "fox", "hen", "sees", "eats", "likes", "the", "fish", "bone", "tree", "stone", "runs", "under"]


@pytest.fixture(scope="module")
def bases(model_folder, tmp_path_factory) -> Path:
    """Folders: `dense`, a random Llama of whole blocks of 32; `text.txt`; an adapter of each size by name."""
    folder = tmp_path_factory.mktemp("merging")
    tokenizer = load(model_folder).tokenizer
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=128, attention_bias=True, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder / "dense")
    tokenizer.save_pretrained(folder / "dense")
    picks = torch.randint(len(WORDS), (6000,), generator=torch.Generator().manual_seed(0)).tolist()
    (folder / "text.txt").write_text(" ".join(WORDS[pick] for pick in picks))
    write_adapter(folder, "loud", 0.12)
    write_adapter(folder, "soft", 0.01)
    write_adapter(folder, "pooled", 0.03, use_qalora=True, qalora_group_size=32)
    return folder


def write_adapter(folder: Path, name: str, size: float, **fields) -> None:
    given = {"r": 4, "task_type": "CAUSAL_LM", "target_modules": "all-linear"}
    model = load(folder / "dense").model
    book = attach(model, LoraConfig(**(given | fields), base_model_name_or_path=str(folder / "dense")))
    torch.manual_seed(1)
    for parameter in book.parameters("default"):
        torch.nn.init.normal_(parameter, std=size)
    save_adapter(model, folder / name)


@pytest.fixture(scope="module")
def quantized_base(bases):
    loaded = load(bases / "dense", scheme=Scheme())
    save_quantized(loaded.model, loaded.tokenizer, bases / "nf4")
    return bases / "nf4"


def record(folder: Path) -> dict:
    return json.loads((folder / "merge.json").read_text())


def test_an_adapter_that_4_bits_can_hold_is_merged_in_the_best_way_and_measured(lorasmith, bases, tmp_path):
    out = tmp_path / "out"
    answer = lorasmith("merge", bases / "loud", "--into", "nf4", "--out", out, "--calibration", bases / "text.txt")
    assert answer.code == 0, answer.err
    found = record(out)["measured"]
    assert set(found) == {"round", "compensate from 16 bits"}
    assert record(out)["method"] == "compensate from 16 bits"
    best, plain = found["compensate from 16 bits"], found["round"]
    assert best["kl"] < 0.5 * plain["kl"]
    away = {name: [one["to_16bit"] for one in found.values()] for name, found in record(out)["layers"].items()}
    assert statistics.median(away["compensate from 16 bits"]) < 0.5 * statistics.median(away["round"])
    assert best["kept"] > 0.8
    assert "* compensate from 16 bits: keeps" in answer.out
    # transformers loads what was written, as the model that was measured
    texts = torch.arange(5, 60)[None]
    ours, theirs = load(out).model, AutoModelForCausalLM.from_pretrained(bases / "dense")
    load_adapter(theirs, bases / "loud")
    with torch.no_grad():
        wanted, got = theirs(texts).logits.log_softmax(-1), ours(texts).logits.log_softmax(-1)
    kl = float((wanted.exp() * (wanted - got)).sum(-1).mean())
    assert math.isclose(kl, best["kl"], rel_tol=1.0)
    assert json.loads((out / "config.json").read_text())["quantization_config"]["quant_method"] == "bitsandbytes"


def test_a_merge_that_keeps_too_little_is_refused_with_numbers_and_ways_out(lorasmith, bases, quantized_base, tmp_path):
    common = ("--model", quantized_base, "--into", "nf4", "--calibration", bases / "text.txt", "--out")
    answer = lorasmith("merge", bases / "soft", *common, tmp_path / "out", "--method", "requantize")
    assert answer.code == MergeError.exit_code
    assert answer.err.count("error: ") == 1
    assert answer.err.splitlines()[-1].startswith("error: ")
    assert "of the adapter's effect on the logits, less than --least-kept 0.8" in answer.err
    assert all(way in answer.err for way in ("bf16", "--base-16bit", "compensate", "--force"))
    assert not (tmp_path / "out").exists()
    forced = lorasmith("merge", bases / "soft", *common, tmp_path / "out", "--method", "requantize", "--force")
    assert forced.code == 0, forced.err
    assert record(tmp_path / "out")["measured"]["requantize"]["kept"] < 0.8


def test_on_a_quantized_base_the_16_bit_one_adds_ways(lorasmith, bases, quantized_base, tmp_path):
    common = ("--model", quantized_base, "--into", "nf4", "--calibration", bases / "text.txt", "--force", "--out")
    answer = lorasmith("merge", bases / "loud", *common, tmp_path / "a", "--base-16bit", bases / "dense")
    assert answer.code == 0, answer.err
    found = record(tmp_path / "a")
    assert set(found["measured"]) == {"requantize", "compensate", "round", "compensate from 16 bits"}
    assert found["method"] == min(found["measured"], key=lambda name: found["measured"][name]["kl"])
    missing = lorasmith("merge", bases / "loud", *common, tmp_path / "b", "--method", "round")
    assert missing.code == 2
    assert "--base-16bit" in missing.err


@pytest.mark.parametrize("into", ["fp4", "int4", "int8"])
def test_every_format_is_written_and_loads(lorasmith, bases, tmp_path, into):
    common = ("--calibration", bases / "text.txt", "--method", "compensate")
    answer = lorasmith("merge", bases / "loud", "--into", into, "--out", tmp_path / "out", *common)
    assert answer.code == 0, answer.err
    layer = load(tmp_path / "out").model.model.layers[0].mlp.up_proj
    assert layer.scheme.format == into


def test_qa_lora_merges_into_zero_points_exactly(lorasmith, bases, tmp_path):
    base = tmp_path / "base"
    made = lorasmith("quantize", bases / "dense", "--out", base, "--format", "int4", "--blocksize", 32, "--zero-points")
    assert made.code == 0, made.err
    assert "int4, blocks of 32, double quantization, zero points" in made.out
    out, calibration = tmp_path / "out", ("--calibration", bases / "text.txt")
    answer = lorasmith("merge", bases / "pooled", "--model", base, "--into", "int4", "--out", out, *calibration)
    assert answer.code == 0, answer.err
    found = record(out)["measured"]
    assert set(found) == {"exact"}
    assert found["exact"]["kept"] == pytest.approx(1, abs=1e-4)
    adapted = load(base).model
    load_adapter(adapted, bases / "pooled")
    tokens = torch.arange(5, 60)[None]
    with torch.no_grad():
        wanted, got = adapted(tokens).logits, load(out).model(tokens).logits
    # f32 sums in another order
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)


def test_bitsandbytes_loads_what_was_merged(lorasmith, bases, tmp_path):
    pytest.importorskip("bitsandbytes")
    common = ("--calibration", bases / "text.txt", "--method", "round")
    answer = lorasmith("merge", bases / "loud", "--into", "nf4", "--out", tmp_path / "out", *common)
    assert answer.code == 0, answer.err
    theirs, ours = AutoModelForCausalLM.from_pretrained(tmp_path / "out"), load(tmp_path / "out").model
    layer = theirs.model.layers[1].mlp.gate_proj
    assert type(layer).__module__.startswith("bitsandbytes")
    assert torch.equal(layer.weight.data.view(-1), ours.model.layers[1].mlp.gate_proj.weight)


def test_transposed_layers_are_merged_too(lorasmith, bases, tmp_path):
    tokenizer = load(bases / "dense").tokenizer
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=64, n_layer=2, n_head=4, n_positions=128)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    fields = {"r": 4, "task_type": "CAUSAL_LM", "target_modules": ["c_attn"], "fan_in_fan_out": True}
    model = load(tmp_path / "gpt2").model
    for parameter in attach(model, LoraConfig(**fields, base_model_name_or_path=str(tmp_path / "gpt2"))).parameters(
        "default"
    ):
        torch.nn.init.normal_(parameter, std=0.1)
    save_adapter(model, tmp_path / "adapter")
    for base, ways in (("gpt2", {"round", "compensate from 16 bits"}), ("small", {"requantize", "compensate"})):
        if base == "small":
            assert lorasmith("quantize", tmp_path / "gpt2", "--out", tmp_path / base).code == 0
        out = tmp_path / f"merged {base}"
        common = ("--into", "nf4", "--calibration", bases / "text.txt", "--out", out)
        answer = lorasmith("merge", tmp_path / "adapter", "--model", tmp_path / base, *common)
        assert answer.code == 0, answer.err
        assert set(record(out)["measured"]) == ways
        assert min(found["kept"] for found in record(out)["measured"].values()) > 0.9


def test_a_dense_base_needs_no_other_16_bit_one(lorasmith, bases, tmp_path):
    common = ("--into", "nf4", "--out", tmp_path / "out", "--base-16bit", bases / "dense")
    answer = lorasmith("merge", bases / "loud", *common)
    assert answer.code == 2
    assert "not quantized itself" in answer.err


def test_an_unknown_format_names_the_nearest(lorasmith, bases, tmp_path):
    answer = lorasmith("merge", bases / "loud", "--into", "nf5", "--out", tmp_path / "out")
    assert answer.code == 2
    assert "Did you mean 'nf4'?" in answer.err


def test_two_names_for_one_choice_are_refused(lorasmith, bases, tmp_path):
    answer = lorasmith("merge", bases / "loud", "--into", "bf16", "--dtype", "bf16", "--out", tmp_path / "out")
    assert answer.code == 2
    assert "leave --dtype out" in answer.err
