import copy
import pickle

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lorasmith.errors import FormatError
from lorasmith.formats import formats
from lorasmith.quantized import (
    QuantizedLinear,
    Scheme,
    count_parameters,
    dense_module,
    quantize_module,
    requantized,
)

SCHEMES = [Scheme(name) for name in formats.names()] + [Scheme("nf4", 32, False), Scheme("fp4", 256, False)]
MODULES = {
    "linear": lambda: nn.Linear(96, 40),
    # 36 is no multiple of any block: blocks run across rows
    "odd linear": lambda: nn.Linear(36, 10, bias=False),
    "embedding": lambda: nn.Embedding(50, 64),
    "odd embedding": lambda: nn.Embedding(50, 20),
    "conv1d": lambda: nn.Conv1d(6, 8, 3, stride=2, padding=1),
    "conv2d": lambda: nn.Conv2d(4, 8, (3, 2), padding=1, dilation=2, groups=2),
    "conv3d": lambda: nn.Conv3d(3, 5, 2, bias=False),
}
INPUTS = {
    "linear": (3, 96),
    "odd linear": (2, 4, 36),
    "conv1d": (2, 6, 9),
    "conv2d": (2, 4, 8, 7),
    "conv3d": (1, 3, 4, 4, 4),
}


def inputs(kind: str) -> torch.Tensor:
    torch.manual_seed(1)
    if kind in INPUTS:
        return torch.randn(INPUTS[kind])
    return torch.randint(50, (4, 6))


@pytest.fixture(params=SCHEMES, ids=str)
def scheme(request):
    return request.param


@pytest.mark.parametrize("kind", MODULES)
def test_forward_equals_the_dense_layer_of_the_dequantized_weight(kind, scheme):
    torch.manual_seed(0)
    layer = quantize_module(MODULES[kind](), scheme)
    x = inputs(kind)
    # int8 rounds activations too, each to 1 / 254 of its row's largest
    tolerance = 0.05 if layer.rowwise and x.is_floating_point() and "conv" not in kind else 1e-5
    assert_close(layer(x), dense_module(layer)(x), atol=tolerance, rtol=0)


@pytest.mark.parametrize("kind", INPUTS)
def test_the_gradient_of_the_input_passes_through_the_frozen_weight(kind, scheme):
    torch.manual_seed(0)
    layer = quantize_module(MODULES[kind](), scheme)
    x = inputs(kind).requires_grad_()
    y = inputs(kind).requires_grad_()
    out = layer(x)
    seed = torch.randn_like(out)
    out.backward(seed)
    dense_module(layer)(y).backward(seed)
    assert_close(x.grad, y.grad, atol=1e-5, rtol=1e-5)
    assert all(parameter.grad is None for parameter in layer.parameters())


def bits(layer: nn.Module) -> dict[str, bytes]:
    return {name: p.detach().contiguous().numpy().tobytes() for name, p in layer.stored.items()}


def test_stored_bits_survive_casts_copies_and_pickles(scheme):
    layer = quantize_module(nn.Linear(96, 40), scheme)
    before = bits(layer)
    assert bits(copy.deepcopy(layer)) == before
    assert bits(pickle.loads(pickle.dumps(layer))) == before
    assert bits(layer.to(torch.bfloat16).to(torch.float32).half().double()) == before


def test_stored_bits_survive_a_state_dict(scheme):
    layer = quantize_module(nn.Linear(96, 40), scheme)
    other = quantize_module(nn.Linear(96, 40), scheme)
    other.load_state_dict(layer.state_dict())
    assert bits(other) == bits(layer)


def test_a_missing_scale_is_an_error_that_names_it():
    layer = quantize_module(nn.Linear(96, 40), Scheme())
    state = layer.state_dict()
    del state["nested_scales"]
    with pytest.raises(FormatError, match="nested_scales"):
        layer.load_state_dict(state, strict=False)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_weights_are_refused_by_name(value, scheme):
    linear = nn.Linear(96, 40)
    linear.weight.data[3, 5] = value
    with pytest.raises(FormatError, match=r"layers\.7\.q_proj"):
        QuantizedLinear.from_float(linear, scheme, "layers.7.q_proj.weight")


def test_what_int8_would_overflow_is_refused_by_name():
    linear = nn.Linear(96, 40)
    linear.weight.data[0, 0] = 70_000
    with pytest.raises(FormatError, match="big_one"):
        QuantizedLinear.from_float(linear, Scheme("int8"), "big_one")
    QuantizedLinear.from_float(linear, Scheme("nf4"), "big_one")


def test_other_modules_are_refused():
    with pytest.raises(FormatError, match="LayerNorm"):
        quantize_module(nn.LayerNorm(4), Scheme(), "norm")


@pytest.mark.parametrize(("double_quant", "expected"), [(False, 4.5), (True, 4.127)])
def test_bits_per_weight_of_a_large_matrix_are_the_papers(double_quant, expected):
    # QLoRA, section 3: 0.5 bits a weight of scales become 0.127
    torch.manual_seed(0)
    linear = nn.Linear(4096, 4096, bias=False)
    layer = quantize_module(linear, Scheme("nf4", 64, double_quant))
    stored = 8 * sum(p.numel() * p.element_size() for p in layer.stored.values()) / 4096**2
    assert round(stored, 3) == expected
    assert stored == layer.scheme.bits_per_weight((4096, 4096))


def test_parameters_are_counted_as_elements_of_the_dense_weight():
    layer = quantize_module(nn.Linear(96, 40), Scheme())
    assert count_parameters(layer).total == 96 * 40 + 40


def test_a_16_bit_input_gives_a_16_bit_output_close_to_the_dense_layers(scheme):
    torch.manual_seed(0)
    layer = quantize_module(nn.Linear(96, 40).to(torch.bfloat16), scheme)
    x = torch.randn(5, 96, dtype=torch.bfloat16)
    y = layer(x)
    assert y.dtype == torch.bfloat16
    # bf16 keeps 8 bits; int8 also rounds the activations
    assert_close(y, dense_module(layer)(x), atol=0.06, rtol=0.05)


@pytest.mark.parametrize("name", INPUTS)
def test_float16_on_a_cpu_is_multiplied_in_float32_and_rounded_once(scheme, name):
    torch.manual_seed(0)
    layer = quantize_module(MODULES[name](), scheme)
    # some features beyond LLM.int8()'s threshold too
    x = (4 * torch.randn(INPUTS[name])).half()
    assert torch.equal(layer(x), layer(x.float()).half())


@pytest.mark.parametrize("width", [64, 20])
@pytest.mark.parametrize("row", [-1, 50])
def test_rows_that_an_embedding_has_not_are_refused_as_by_a_dense_one(scheme, width, row):
    layer = quantize_module(nn.Embedding(50, width), scheme)
    with pytest.raises(IndexError):
        layer(torch.tensor([0, row]))


def test_no_ids_give_no_rows(scheme):
    assert quantize_module(nn.Embedding(50, 64), scheme)(torch.empty(2, 0, dtype=torch.int64)).shape == (2, 0, 64)


def test_a_requantized_layer_multiplies_as_the_one_before():
    layer = QuantizedLinear.from_float(nn.Linear(64, 32), Scheme("int8"))
    layer.compute_dtype, layer.int8_threshold = torch.bfloat16, 0.0
    again = requantized(layer, torch.randn(32, 64), Scheme("int8"))
    assert (again.compute_dtype, again.int8_threshold) == (torch.bfloat16, 0.0)


@pytest.mark.parametrize("kind", MODULES)
def test_shapes_alone_pass_through_on_the_meta_device(kind, scheme):
    layer, x = quantize_module(MODULES[kind](), scheme), inputs(kind)
    assert layer.to("meta")(x.to("meta")).shape == layer.to_empty(device="cpu")(x).shape
