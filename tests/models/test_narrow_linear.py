"""Dense layers in 16 bits while a model generates: the same values, and modules that get their class back."""

import pytest
import torch
from torch import nn

from lorasmith.models.narrow_linear import NarrowLinear, narrow_linears
from lorasmith.ops import precision


@pytest.fixture(autouse=True)
def without_bfloat16_instructions(monkeypatch):
    monkeypatch.setattr(precision, "bfloat16_instructions", lambda: False)


def model(dtype=torch.bfloat16):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 24), nn.ReLU(), nn.Linear(24, 7, bias=False)).to(dtype)


@pytest.mark.parametrize("rows", [1, 4, 30])
@torch.no_grad()
def test_values_are_those_of_the_layers_in_f32_rounded_once(rows):
    layers, x = model(), torch.randn(rows, 2, 40).bfloat16()
    with narrow_linears(layers):
        first = layers[0](x)
    expected = nn.functional.linear(x.float(), layers[0].weight.float(), layers[0].bias.float())
    # the rounding to 16 bits
    torch.testing.assert_close(first.float(), expected, atol=1e-5, rtol=2**-8)


def test_modules_get_their_class_back_after_an_error():
    layers = model()
    with pytest.raises(RuntimeError, match="mine"), narrow_linears(layers):
        assert type(layers[0]) is NarrowLinear
        raise RuntimeError("mine")
    assert type(layers[0]) is nn.Linear


def test_layers_that_pytorch_multiplies_well_stay(monkeypatch):
    layers = model(torch.float32)
    with narrow_linears(layers):
        assert type(layers[0]) is nn.Linear
    monkeypatch.setattr(precision, "bfloat16_instructions", lambda: True)
    layers = model()
    with narrow_linears(layers):
        assert type(layers[0]) is nn.Linear


def test_gradients_are_those_of_the_layers_own_forward():
    layers, x = model(), torch.randn(3, 40).bfloat16()
    layers(x).sum().backward()
    own = [parameter.grad.clone() for parameter in layers.parameters()]
    layers.zero_grad()
    with narrow_linears(layers):
        layers(x).sum().backward()
    assert all(torch.equal(parameter.grad, grad) for parameter, grad in zip(layers.parameters(), own, strict=True))


@torch.no_grad()
def test_hooks_still_see_the_output():
    layers, seen = model(), []
    layers[2].register_forward_hook(lambda module, inputs, output: seen.append(output))
    with narrow_linears(layers):
        y = layers(torch.randn(1, 40).bfloat16())
    assert seen[0] is y
