"""One step where all that acts is of low rank, else the parts one after the other: the same values either way."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lorasmith import IA3Config, LoraConfig, Scheme, get_peft_model
from lorasmith.attach import adapted as module_of_adapted
from lorasmith.attach import adapters_of
from lorasmith.quantized import QuantizedLinear

IN, OUT = 64, 48


def conv1d():
    layer = Conv1D(OUT, IN)
    nn.init.normal_(layer.bias)
    return layer


BASES = {
    "linear": lambda: nn.Linear(IN, OUT),
    "Conv1D": conv1d,
    "nf4": lambda: QuantizedLinear.from_float(nn.Linear(IN, OUT), Scheme("nf4")),
    "int8": lambda: QuantizedLinear.from_float(nn.Linear(IN, OUT), Scheme("int8")),
}


def adapted(base="linear", *, others=0, config=None):
    torch.manual_seed(0)
    model = get_peft_model(nn.Sequential(BASES[base]()), config or LoraConfig(r=4, target_modules=["0"]))
    for number in range(others):
        model.add_adapter(f"other{number}", LoraConfig(r=3 + number, lora_alpha=5, target_modules=["0"]))
    adapters_of(model.get_base_model()).activate(["default", *(f"other{number}" for number in range(others))])
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def steps(monkeypatch):
    """How many times a layer ran as one step."""
    taken = []
    whole = module_of_adapted.adapted_linear
    monkeypatch.setattr(module_of_adapted, "adapted_linear", lambda *a: taken.append(1) or whole(*a))
    return taken


def by_parts(monkeypatch, model, x):
    """Output and gradients as the sites' before and after give them."""
    with monkeypatch.context() as patch:
        patch.setattr(module_of_adapted, "frozen_product", lambda *arguments: None)
        return output_and_gradients(model, x)


def output_and_gradients(model, x):
    leaf = x.clone().requires_grad_()
    y = model(leaf)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [y, *torch.autograd.grad(y.square().sum(), [leaf, *trained])]


@pytest.mark.parametrize("others", [0, 2])
@pytest.mark.parametrize("base", BASES)
def test_one_step_gives_what_the_parts_give(steps, monkeypatch, base, others):
    model, x = adapted(base, others=others), torch.randn(5, IN)
    ours = output_and_gradients(model, x)
    assert steps == [1]
    for mine, other in zip(ours, by_parts(monkeypatch, model, x), strict=True):
        # sums of some hundred products in another order
        torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-4)


def hook_(model):
    model.get_submodule("base_model.model.0").base_layer.register_forward_hook(lambda *a: None)


def own_forward_(model):
    layer = model.get_submodule("base_model.model.0").base_layer
    layer.forward = layer.forward


def train_base_(model):
    model.get_submodule("base_model.model.0").base_layer.weight.requires_grad_(True)


@pytest.mark.parametrize("change", [hook_, own_forward_, train_base_])
def test_a_layer_whose_own_forward_matters_runs_it(steps, monkeypatch, change):
    model = adapted()
    change(model)
    model(torch.randn(5, IN))
    assert steps == []


def test_methods_that_are_no_update_of_low_rank_run_their_parts(steps):
    for config in (
        IA3Config(target_modules=["0"], feedforward_modules=[]),
        LoraConfig(target_modules=["0"], lora_bias=True),
    ):
        adapted(config=config)(torch.randn(5, IN))
    assert steps == []


def test_the_bare_base_runs_its_own_forward(steps):
    model, x = adapted(), torch.randn(5, IN)
    with model.disable_adapter():
        y = model(x)
    assert steps == []
    assert torch.equal(y, model.get_submodule("base_model.model.0").base_layer(x))


def test_a_type_that_the_layer_refuses_is_refused(steps):
    with pytest.raises(RuntimeError, match="dtype"):
        adapted()(torch.randn(5, IN).bfloat16())
    assert steps == []
