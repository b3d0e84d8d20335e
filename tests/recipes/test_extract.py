"""Taking an adapter out of a tuned checkpoint: what was put in comes out, and the errors are the tails."""

import json
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

import lorasmith
from lorasmith.attach import adapters_of, attach, merge_and_unload
from lorasmith.errors import AttachError, InputError, ModelError
from lorasmith.methods.lora import LoraConfig
from lorasmith.models.tensor_file import StoredTensor
from lorasmith.recipes.extract import Extraction, extract_adapter
from lorasmith.recipes.extraction_table import ErrorByRank
from lorasmith.recipes.sections import ModelSection
from tiny import bert, llama, logits, mixtral

NAME = "model.layers.0.mlp.up_proj"


def extract(base, tuned, out, **wanted):
    return list(extract_adapter(ModelSection(path=str(base)), ModelSection(path=str(tuned)), Extraction(**wanted), out))


def tuned_by_lora(build, config, folder):
    """Saves a model before and after a random LoRA was merged into it; returns the changes by module."""
    model = build()
    model.save_pretrained(folder / "base")
    book = attach(model, config)
    torch.manual_seed(1)
    for parameter in book.parameters("default"):
        torch.nn.init.normal_(parameter, std=0.1)
    changes = {path: site.delta(torch.zeros(())) for path, site in adapters_of(model).sites("default")}
    merge_and_unload(model).save_pretrained(folder / "tuned")
    return changes


@pytest.fixture
def folders(tmp_path):
    tuned_by_lora(llama, LoraConfig(r=3, target_modules="all-linear"), tmp_path)
    return tmp_path


def test_a_merged_lora_is_recovered_exactly_here_and_in_peft(folders):
    lines = extract(folders / "base", folders / "tuned", folders / "out", rank=3)
    tuned = logits(AutoModelForCausalLM.from_pretrained(folders / "tuned"))
    again = lorasmith.AutoPeftModelForCausalLM.from_pretrained(folders / "out")
    # the weights were rounded once in f32
    assert_close(logits(again), tuned, atol=1e-5, rtol=0)
    total = next(line for line in lines if line.startswith("total"))
    assert total.split()[-6] == "0.00"
    peft = pytest.importorskip("peft")
    theirs = peft.PeftModel.from_pretrained(llama(), folders / "out").eval()
    assert_close(logits(theirs), tuned, atol=1e-5, rtol=0)


def test_the_error_by_rank_is_the_tail_of_the_singular_values(folders):
    base, tuned = (load_file(folders / name / "model.safetensors") for name in ("base", "tuned"))
    # a full update, of every rank
    torch.manual_seed(2)
    for name, value in tuned.items():
        if "proj" in name and value.dim() == 2:
            tuned[name] = base[name] + torch.randn(value.shape)
    save_file(tuned, folders / "tuned" / "model.safetensors", metadata={"format": "pt"})
    lines = extract(folders / "base", folders / "tuned", folders / "out", rank=4)
    ranks = [int(word) for word in lines[0].split()[4:]]
    assert ranks == [1, 2, 4, 8, 16]
    said = next(line for line in lines if line.startswith(NAME)).split()[1::2]
    change = tuned[f"{NAME}.weight"] - base[f"{NAME}.weight"]
    values = torch.linalg.svdvals(change)
    for rank, text in zip(ranks, said):
        assert float(text) == pytest.approx(100 * float(values[rank:].norm() / values.norm()), abs=0.006)
    state = load_file(folders / "out" / "adapter_model.safetensors")
    a, b = (state[f"base_model.model.{NAME}.lora_{side}.weight"] for side in "AB")
    assert float((change - b @ a).norm()) == pytest.approx(float(values[4:].norm()), rel=1e-4)


def test_the_rough_way_finds_a_low_rank_exactly_and_measures_what_it_left(folders):
    lines = extract(folders / "base", folders / "tuned", folders / "out", rank=3, rough=True)
    again = lorasmith.AutoPeftModelForCausalLM.from_pretrained(folders / "out")
    tuned = logits(AutoModelForCausalLM.from_pretrained(folders / "tuned"))
    assert_close(logits(again), tuned, atol=1e-5, rtol=0)
    assert float(lines[1].split()[1]) > 1


def test_errors_of_several_matrices_add_up_as_squares():
    one = ErrorByRank.of(torch.tensor([3.0, 4.0]), 5.0, complete=True)
    two = ErrorByRank.of(torch.tensor([12.0]), 13.0, complete=False)
    assert one.rest == (25.0, 16.0, 0.0)
    assert two.rest == (169.0, 25.0)
    assert (one + two).rest == (194.0, 41.0, 25.0)
    assert (one + two).relative(1) == pytest.approx((41 / 194) ** 0.5)


def change(folder, *names):
    path = folder / "tuned" / "model.safetensors"
    state = load_file(path)
    for name in names:
        state[name] = state[name] + 0.5
    save_file(state, path, metadata={"format": "pt"})


def test_what_else_differs_is_named_and_kept_on_request(folders):
    extra = ["model.embed_tokens.weight", "lm_head.weight", "model.layers.1.input_layernorm.weight"]
    change(folders, *extra, "model.layers.0.self_attn.q_proj.bias")
    lines = extract(folders / "base", folders / "tuned", folders / "named", rank=3)
    named = [line.strip() for line in lines if line.startswith("  ")]
    assert named == [extra[0], "model.layers.0.self_attn.q_proj.bias", extra[2], extra[1]]
    wanted = {"rank": 3, "keep": ("all",), "biases": True}
    lines = extract(folders / "base", folders / "tuned", folders / "kept", **wanted)
    assert not [line for line in lines if "left out, though" in line]
    tuned = logits(AutoModelForCausalLM.from_pretrained(folders / "tuned"))
    again = lorasmith.AutoPeftModelForCausalLM.from_pretrained(folders / "kept")
    assert_close(logits(again), tuned, atol=1e-5, rtol=0)


def test_a_module_that_is_kept_is_no_target_and_one_that_is_not_there_is_named(folders):
    extract(folders / "base", folders / "tuned", folders / "out", rank=3, keep=("mlp",))
    config = json.loads((folders / "out" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["k_proj", "o_proj", "q_proj", "v_proj"]
    assert config["modules_to_save"] == ["model.layers.0.mlp", "model.layers.1.mlp"]
    tuned = logits(AutoModelForCausalLM.from_pretrained(folders / "tuned"))
    again = lorasmith.AutoPeftModelForCausalLM.from_pretrained(folders / "out")
    assert_close(logits(again), tuned, atol=1e-5, rtol=0)
    with pytest.raises(AttachError, match="Did you mean 'lm_head'"):
        extract(folders / "base", folders / "tuned", folders / "other", rank=3, keep=("lm_haed",))


def test_a_kept_embedding_takes_its_tied_head_along(tmp_path):
    tuned_by_lora(lambda: llama(tie_word_embeddings=True), LoraConfig(r=2), tmp_path)
    change(tmp_path, "model.embed_tokens.weight")
    extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", rank=2, keep=("embed_tokens",))
    tuned = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "tuned"))
    again = lorasmith.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")
    assert_close(logits(again), tuned, atol=1e-5, rtol=0)


def test_layers_that_are_stored_the_other_way_round_and_embeddings_are_recovered(tmp_path):
    def build():
        torch.manual_seed(0)
        return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4)).eval()

    tuned_by_lora(build, LoraConfig(r=2, target_modules=["c_attn", "c_proj", "wpe"], fan_in_fan_out=True), tmp_path)
    targets = ("c_attn", "c_proj", "wpe")
    extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", rank=2, targets=targets)
    tuned = logits(GPT2LMHeadModel.from_pretrained(tmp_path / "tuned").eval())
    again = lorasmith.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")
    assert_close(logits(again), tuned, atol=1e-5, rtol=0)


def test_a_classifier_brings_its_head(tmp_path):
    tuned_by_lora(bert, LoraConfig(r=2, task_type="SEQ_CLS"), tmp_path)
    change(tmp_path, "classifier.weight")
    bert().bert.save_pretrained(tmp_path / "base")
    extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", rank=2, task="classification")
    again = lorasmith.PeftModel.from_pretrained(bert(), tmp_path / "out")
    tuned = type(bert()).from_pretrained(tmp_path / "tuned").eval()
    assert_close(logits(again), logits(tuned), atol=1e-5, rtol=0)


def test_only_the_targets_that_changed_are_adapted(tmp_path):
    tuned_by_lora(llama, LoraConfig(r=2, target_modules=["v_proj"], layers_to_transform=[1]), tmp_path)
    extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", rank=2)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["layers.1.self_attn.v_proj"]


def test_experts_that_are_stored_under_other_names_are_named(tmp_path):
    changes = tuned_by_lora(mixtral, LoraConfig(r=2, target_modules=["q_proj"]), tmp_path)
    lines = extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", rank=2)
    assert "model.layers.0.mlp.experts.down_proj" in next(line for line in lines if line.startswith("not compared"))
    state = load_file(tmp_path / "out" / "adapter_model.safetensors")
    for path, expected in changes.items():
        a, b = (state[f"base_model.model.{path}.lora_{side}.weight"] for side in "AB")
        assert_close(b @ a, expected, atol=1e-5, rtol=0)


def test_the_same_model_twice_and_models_that_do_not_fit_are_refused(folders):
    with pytest.raises(AttachError, match="nothing to extract"):
        extract(folders / "base", folders / "base", folders / "out", rank=3)
    llama(intermediate_size=40).save_pretrained(folders / "other")
    with pytest.raises(ModelError, match=r"\[40, 32\].*\[48, 32\]"):
        extract(folders / "base", folders / "other", folders / "out", rank=3)
    with pytest.raises(InputError, match="--rank 0"):
        extract(folders / "base", folders / "tuned", folders / "out", rank=0)
    assert not (folders / "out").exists()


def test_no_more_than_one_matrix_of_each_checkpoint_is_held(folders, monkeypatch):
    alive = []
    read = StoredTensor.read

    def spied(self):
        alive[:] = [reference for reference in alive if reference() is not None]
        assert len(alive) <= 1
        tensor = read(self)
        alive.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(StoredTensor, "read", spied)
    extract(folders / "base", folders / "tuned", folders / "out", rank=3)


def test_a_part_of_the_model_is_a_target(folders):
    extract(folders / "base", folders / "tuned", folders / "attention", rank=3, targets=("attention",))
    config = json.loads((folders / "attention" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["k_proj", "o_proj", "q_proj", "v_proj"]
