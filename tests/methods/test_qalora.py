"""QA-LoRA beside PEFT's arithmetic, and its merge into zero points."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lorasmith.attach import adapters_of, attach, exact_layer, load_adapter, merge_and_unload, replaced, save_adapter
from lorasmith.errors import AttachError
from lorasmith.methods.lora import LoraConfig
from lorasmith.quantized import QuantizedLinear, Scheme
from tiny import llama, logits, quantized, shake

ZEROS = Scheme("int4", 32, zero_points=True)


def config(**fields) -> LoraConfig:
    given = {"r": 4, "target_modules": "all-linear", "use_qalora": True, "qalora_group_size": 32}
    return LoraConfig(**(given | fields))


def wide_llama() -> nn.Module:
    """A llama whose layers are all whole blocks of 32 wide."""
    return llama(intermediate_size=64)


def adapted(model: nn.Module, **fields) -> nn.Module:
    torch.manual_seed(0)
    attach(model, config(**fields))
    return shake(model)


def test_the_update_is_that_of_pefts_variant():
    variants = pytest.importorskip("peft.tuners.lora.variants")
    linear = nn.Linear(48, 10)
    model = nn.Sequential(linear)
    attach(model, LoraConfig(r=3, lora_alpha=5, target_modules=["0"], use_qalora=True, qalora_group_size=8))
    site = shake(model)[0].sites["default"]
    x = torch.randn(2, 5, 48)
    # what PEFT's arithmetic reads of its layer; only its GPTQ layers use it
    module = SimpleNamespace(
        lora_A={"default": site.lora_A},
        lora_B={"default": site.lora_B},
        lora_dropout={"default": nn.Identity()},
        scaling={"default": site.scaling},
        qalora_group_size={"default": 8},
        in_features=48,
        training=False,
    )
    theirs = variants.QALoraLinearVariant.forward(module, "default", x, linear(x))
    # two orders of the same f32 sums
    assert_close(model(x), theirs, atol=2e-6, rtol=0)
    assert_close(site.after(x, linear(x), None), theirs, atol=2e-6, rtol=0)


@pytest.mark.parametrize("base", [wide_llama, lambda: quantized(wide_llama(), ZEROS), lambda: quantized(wide_llama())])
def test_merged_for_good_it_equals_the_adapter(base):
    model = adapted(base())
    before = logits(model)
    # one rounding of each weight in f32
    assert_close(logits(merge_and_unload(model)), before, atol=1e-5, rtol=0)


def test_it_merges_into_zero_points_without_being_rounded():
    model = adapted(quantized(wide_llama(), ZEROS))
    wanted, book = logits(model), adapters_of(model)
    layers = {path: exact_layer(module, ["default"], ZEROS) for path, module in book.adapted()}
    with book.disabled():
        assert (logits(model) - wanted).abs().max() > 1e-2
    with replaced(model, layers):
        # sums of f32 numbers in another order
        assert_close(logits(model), wanted, atol=1e-5, rtol=0)
    for path, module in book.adapted():
        assert torch.equal(layers[path].weight, module.base_layer.weight)
        assert torch.equal(layers[path].scales, module.base_layer.scales)


@pytest.mark.parametrize(
    ("scheme", "fields"),
    [
        (Scheme("int4", 32), {}),
        (ZEROS, {"qalora_group_size": 16}),
        (ZEROS, {"use_qalora": False}),
    ],
    ids=["no zero points", "groups smaller than blocks", "plain LoRA"],
)
def test_what_zero_points_cannot_hold_is_not_merged_into_them(scheme, fields):
    model = adapted(quantized(wide_llama(), scheme), **fields)
    assert all(exact_layer(module, ["default"], scheme) is None for _, module in adapters_of(model).adapted())


def test_saved_and_loaded_the_logits_are_bit_equal(tmp_path):
    model = adapted(quantized(wide_llama(), ZEROS))
    save_adapter(model, tmp_path)
    other = quantized(wide_llama(), ZEROS)
    load_adapter(other, tmp_path)
    assert torch.equal(logits(other), logits(model))


def test_factors_get_the_gradients_of_the_pooled_form():
    model = nn.Sequential(nn.Linear(48, 10))
    attach(model, LoraConfig(r=3, target_modules=["0"], use_qalora=True, qalora_group_size=8))
    site = shake(model)[0].sites["default"]
    x = torch.randn(5, 48)
    fused = torch.autograd.grad(model(x).square().sum(), list(site.parameters()))
    pooled = torch.autograd.grad(site.after(x, model[0].base_layer(x), None).square().sum(), list(site.parameters()))
    assert_close(fused, pooled, atol=1e-3, rtol=1e-5)


def test_zero_points_pass_gradients_to_the_input():
    layer = QuantizedLinear.from_float(nn.Linear(64, 6), ZEROS)
    x = torch.randn(3, 64, requires_grad=True)
    (through,) = torch.autograd.grad(layer(x).square().sum(), x)
    weight = layer.dequantize()
    y = x @ weight.T + layer.bias
    assert_close(layer.product().backward(2 * y.detach()), through, atol=1e-4, rtol=0)
    assert_close(through, torch.autograd.grad(y.square().sum(), x)[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"qalora_group_size": 24}, "qalora_group_size=24"),
        ({"target_modules": ["embed_tokens"]}, "linear layers only"),
        ({"qalora_group_size": 0}, "at least 1"),
        ({"use_dora": True}, "use_qalora and use_dora"),
    ],
)
def test_what_cannot_be_pooled_is_refused_by_name(fields, told):
    with pytest.raises(AttachError, match=told):
        attach(wide_llama(), config(**fields))
