"""What selective methods train, said by parts and places, and what they say of quantized weights."""

import pytest
import torch

from lorasmith.attach import adapter_state, attach, load_adapter, save_adapter
from lorasmith.errors import AttachError
from lorasmith.methods.bitfit import BitFitConfig
from lorasmith.methods.full import FullConfig
from lorasmith.methods.ln_tuning import LNTuningConfig
from tiny import bert, llama, logits, quantized, shake


def trained(model, config):
    return [name for name, _ in attach(model, config).trainable()]


def within(names, *places):
    return bool(names) and all(any(f"{place}." in name for place in places) for name in names)


def test_the_last_layers_train_whole():
    names = trained(llama(num_hidden_layers=4), FullConfig(layers="last-2"))
    assert within(names, "layers.2", "layers.3")
    # four projections with biases but the last, three of the feed-forward, two norms
    assert len(names) == 2 * (4 + 4 + 3 + 2)


def test_the_head_alone_trains():
    assert trained(llama(), FullConfig(target_modules="head")) == ["lm_head.weight"]


def test_the_embeddings_alone_train():
    assert trained(llama(), FullConfig(target_modules="embeddings")) == ["model.embed_tokens.weight"]


def test_named_modules_train_with_what_is_in_them():
    names = trained(llama(), FullConfig(target_modules=["layers.1.mlp", "norm"]))
    assert names == [f"model.layers.1.mlp.{part}_proj.weight" for part in ("gate", "up", "down")] + [
        "model.norm.weight"
    ]


def test_excluded_modules_stay_as_they_are():
    names = trained(llama(), FullConfig(target_modules="attention", exclude_modules=["v_proj"], layers="first-1"))
    assert {name.split(".")[-2] for name in names} == {"q_proj", "k_proj", "o_proj"}


def test_biases_train_where_they_are_asked_for():
    assert within(trained(llama(), BitFitConfig(layers="first-half")), "layers.0")


def test_norms_train_where_peft_has_no_choice():
    names = trained(bert(), LNTuningConfig())
    assert within(names, "LayerNorm")
    # of the embeddings, and two a layer; weight and bias
    assert len(names) == (1 + 2 * 2) * 2


def test_what_was_found_is_saved_by_name_and_found_again(tmp_path):
    model = llama()
    attach(model, FullConfig(layers="last-1", target_modules="mlp"))
    adapted = logits(shake(model))
    save_adapter(model, tmp_path)
    other = llama()
    config = load_adapter(other, tmp_path).configs["default"]
    assert config.layers is None
    assert config.target_modules == [f"layers.1.mlp.{part}_proj" for part in ("down", "gate", "up")]
    assert torch.equal(logits(other), adapted)


def test_a_quantized_weight_is_named_as_what_cannot_train(caplog):
    model = quantized(llama())
    names = trained(model, FullConfig(layers="last-1"))
    assert "14 quantized weights" not in caplog.text
    assert "7 quantized weights (down_proj, gate_proj, k_proj" in caplog.text
    assert not any(name.endswith("proj.weight") for name in names)


def test_nothing_but_quantized_weights_is_refused_with_the_reason():
    with pytest.raises(AttachError, match=r"FULL selects no tensor.*6 quantized weights.*quantization.skip"):
        attach(quantized(llama()), FullConfig(target_modules="mlp"))


def test_biases_beside_quantized_weights_need_no_warning(caplog):
    attach(quantized(llama()), BitFitConfig())
    assert "quantized" not in caplog.text


def test_keys_of_norms_are_pefts():
    model = llama()
    attach(model, LNTuningConfig())
    assert "base_model.model.model.norm.ln_tuning_layers.weight" in adapter_state(model)
