import pytest
import torch
from torch.testing import assert_close
from transformers import GPT2Config, GPT2LMHeadModel

import lorasmith
from lorasmith.attach import adapters_of
from lorasmith.errors import AttachError, ModelError
from lorasmith.quantized import Scheme
from tiny import llama, logits, quantized

FIELDS = {"task_type": "CAUSAL_LM", "target_modules": "all-linear", "r": 8}


@pytest.fixture
def dense(tmp_path):
    llama().save_pretrained(tmp_path)
    return tmp_path


def adapted(scheme=None, **fields):
    return lorasmith.get_peft_model(quantized(llama(), scheme), lorasmith.LoraConfig(**(FIELDS | fields)))


@pytest.mark.parametrize("form", ["nf4", "fp4", "int4", "int8"])
def test_every_layer_and_the_logits_come_nearer_to_the_dense_model(form, dense):
    wanted = logits(llama())
    model = adapted(Scheme(form), lora_alpha=20)
    before = (logits(model) - wanted).norm()
    lorasmith.replace_lora_weights_loftq(model, dense)
    # int8 also rounds activations, which no factor makes up for
    assert (logits(model) - wanted).norm() < (1.0 if form == "int8" else 0.7) * before
    weights = dict(llama().named_parameters())
    for path, module in adapters_of(model.get_base_model()).adapted():
        held = module.base_layer.dequantize()
        site = module.sites["default"]
        rest = weights[f"{path}.weight"] - held
        best = torch.linalg.svd(rest)
        expected = best.U[:, :8] * best.S[:8] @ best.Vh[:8]
        assert_close(site.scaling * site.lora_B.weight @ site.lora_A.weight, expected, atol=1e-6, rtol=0)


def test_the_factors_are_pefts_at_a_scaling_of_one(dense):
    decompose = pytest.importorskip("peft.utils.loftq_utils")._low_rank_decomposition
    model = adapted(lora_alpha=8)
    lorasmith.replace_lora_weights_loftq(model, dense / "model.safetensors")
    weights = dict(llama().named_parameters())
    path, module = next(iter(adapters_of(model.get_base_model()).adapted()))
    theirs = decompose(weights[f"{path}.weight"].detach() - module.base_layer.dequantize(), 8)
    site = module.sites["default"]
    assert_close(site.lora_B.weight @ site.lora_A.weight, theirs["L"] @ theirs["R"], atol=1e-6, rtol=0)


def test_a_callback_that_says_no_keeps_the_layer_as_it_was(dense):
    model = adapted()
    before = logits(model)
    asked = []
    lorasmith.replace_lora_weights_loftq(model, dense, callback=lambda model, name: asked.append(name) or False)
    assert "model.layers.0.self_attn.q_proj" in asked
    assert torch.equal(logits(model), before)


def test_layers_that_are_stored_the_other_way_round_are_found(tmp_path):
    torch.manual_seed(0)
    ids = {"bos_token_id": 0, "eos_token_id": 0}
    base = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=4, **ids)).eval()
    base.save_pretrained(tmp_path)
    wanted = logits(base)
    for path in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
        layer = base.transformer.h[0].get_submodule(path)
        base.transformer.h[0].set_submodule(path, lorasmith.quantize_module(layer, Scheme()))
    model = lorasmith.get_peft_model(base, lorasmith.LoraConfig(**FIELDS))
    before = (logits(model) - wanted).norm()
    lorasmith.replace_lora_weights_loftq(model, tmp_path)
    assert (logits(model) - wanted).norm() < 0.8 * before


def test_what_cannot_be_replaced_is_said(dense, tmp_path):
    dense_model = lorasmith.get_peft_model(llama(), lorasmith.LoraConfig(**FIELDS))
    with pytest.raises(AttachError, match="no plain LoRA on quantized"):
        lorasmith.replace_lora_weights_loftq(dense_model, dense)
    llama(intermediate_size=40).save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match=r"\[40, 32\]"):
        lorasmith.replace_lora_weights_loftq(adapted(), tmp_path / "other")
