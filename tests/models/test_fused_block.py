"""Fused norms and feed-forwards against transformers' own modules: values, gradients, and what stays as it was."""

import copy
import pickle

import pytest
import torch
from tests.tiny import IDS, llama, logits, quantized, shake
from torch import nn
from torch.testing import assert_close
from transformers import AutoModelForCausalLM
from transformers.models.gemma.configuration_gemma import GemmaConfig
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.mistral.configuration_mistral import MistralConfig
from transformers.models.phi3.configuration_phi3 import Phi3Config
from transformers.models.qwen3.configuration_qwen3 import Qwen3Config

from lorasmith.attach import attach
from lorasmith.methods.lora import LoraConfig
from lorasmith.models.fused_block import fuse_blocks_, fused_blocks, split_blocks_
from lorasmith.ops import native

SIZES = {
    "vocab_size": 64,
    "hidden_size": 36,
    "intermediate_size": 52,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "pad_token_id": 0,
}
FAMILIES = {
    "llama": (LlamaConfig, 7),
    "mistral": (MistralConfig, 7),
    "gemma": (GemmaConfig, 7),
    "qwen3": (Qwen3Config, 11),
    "phi3": (Phi3Config, 7),
}

pytestmark = pytest.mark.skipif(native.extension() is None, reason="fused only where there is a kernel")


def model_of(family, dtype=torch.float32):
    config, count = FAMILIES[family]
    sizes = SIZES | ({"num_attention_heads": 3, "num_key_value_heads": 3} if family == "phi3" else {})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(**sizes)).to(dtype)
    return shake(model), count


def step(model):
    """Logits and all gradients."""
    model.zero_grad()
    out = model(input_ids=IDS).logits
    out.float().square().mean().backward()
    return out.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
def test_values_and_gradients_of_all_weights_are_the_models_own(family):
    model, count = model_of(family)
    own, own_grads = step(model)
    assert len(fuse_blocks_(model)) == count
    fused, grads = step(model)
    # f32 sums in another order, through two layers
    assert_close(fused, own, atol=2e-5, rtol=1e-4)
    assert grads.keys() == own_grads.keys()
    for name, grad in grads.items():
        assert_close(grad, own_grads[name], atol=1e-4 * float(own_grads[name].abs().max()), rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_module_in_bfloat16_is_within_a_rounding_of_its_own(family):
    model, _ = model_of(family, torch.bfloat16)
    generator = torch.Generator().manual_seed(1)
    for module in fuse_blocks_(model):
        width = module.weight.shape[0] if "Norm" in type(module).__name__ else SIZES["hidden_size"]
        x = torch.randn(9, width, generator=generator).bfloat16()
        grad = torch.randn(9, width, generator=generator).bfloat16()
        results = []
        for kind in (type(module), module.own_class):
            module.__class__ = kind
            leaf = x.clone().requires_grad_()
            y = module(leaf)
            y.backward(grad)
            results.append((y.detach().float(), leaf.grad.float()))
        for ours, own in zip(*results, strict=True):
            # one place of bf16 of the largest value of a row: a rounded product precedes the last sum
            assert ((ours - own).abs() <= 2**-7 * own.abs().amax(-1, keepdim=True)).all()


def test_names_classes_and_state_stay_and_can_be_given_back():
    model = llama()
    before = {name: type(module) for name, module in model.named_modules()}
    keys = list(model.state_dict())
    fuse_blocks_(model)
    assert list(model.state_dict()) == keys
    for name, module in model.named_modules():
        assert isinstance(module, before[name]) and type(module).__name__ == before[name].__name__
    split_blocks_(model)
    assert {name: type(module) for name, module in model.named_modules()} == before


def test_a_block_of_fusing_leaves_what_was_fused_before():
    model = llama()
    with fused_blocks(model):
        assert fuse_blocks_(model) == []
    assert len(fuse_blocks_(model)) == 7


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_fused_and_has_weights_of_its_own(copied):
    model = llama()
    fuse_blocks_(model)
    twin = copied(model)
    assert torch.equal(logits(twin), logits(model))
    assert fuse_blocks_(twin) == []
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in model.parameters()}


@pytest.mark.parametrize("before", [True, False])
def test_quantized_and_adapted_projections_keep_acting(before):
    model = quantized(llama())
    if before:
        fuse_blocks_(model)
    attach(model, LoraConfig(r=2, target_modules="all-linear"))
    shake(model)
    if not before:
        fuse_blocks_(model)
    fused, grads = step(model)
    split_blocks_(model)
    own, own_grads = step(model)
    assert_close(fused, own, atol=2e-5, rtol=1e-4)
    assert grads.keys() == own_grads.keys() and grads


def test_hooks_of_a_module_and_of_its_activation_run():
    model = llama()
    fuse_blocks_(model)
    seen = []
    layer = model.model.layers[0]
    for module in (layer.input_layernorm, layer.mlp, layer.mlp.act_fn):
        module.register_forward_hook(lambda module, *_: seen.append(type(module).__name__))
    logits(model)
    assert sorted(seen) == sorted(["LlamaRMSNorm", "LlamaMLP", type(layer.mlp.act_fn).__name__])


def test_what_a_trial_does_not_explain_is_left_alone():
    model = llama(hidden_act="relu")
    norm = model.model.norm
    norm.forward = lambda x: x
    assert {type(module).__name__ for module in fuse_blocks_(model)} == {"LlamaRMSNorm"}
    assert "own_class" not in dir(norm)


def test_other_types_and_exports_take_the_modules_own_forward():
    model = llama().double()
    own = logits(model)
    fuse_blocks_(model)
    assert torch.equal(logits(model), own)
    norm = llama().model.norm
    holder = nn.Sequential(norm)
    fuse_blocks_(holder)
    program = torch.export.export(holder, (torch.randn(2, 32),))
    assert not any("lorasmith" in str(node.target) for node in program.graph.nodes)


def test_the_norm_keeps_its_input_and_a_number_a_row_only():
    model = llama()
    fuse_blocks_(model)
    x = torch.randn(64, 32, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        model.model.norm.requires_grad_(False)(x)
    extra = [t for t in kept if t.data_ptr() not in (x.data_ptr(), model.model.norm.weight.data_ptr())]
    assert [t.numel() for t in extra] == [64]


def test_a_skeleton_on_the_meta_device_is_fused_for_the_device_it_is_meant_for():
    with torch.device("meta"):
        model = llama()
    assert fuse_blocks_(model) == []
    assert len(fuse_blocks_(model, torch.device("cpu"))) == 7
