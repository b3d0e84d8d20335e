import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lorasmith.errors import FormatError
from lorasmith.quantized import QuantizedLinear, Scheme, dense_module, quantize_module

INT4 = Scheme("int4", 32, zero_points=True)


def shifted() -> nn.Linear:
    """A layer whose blocks lie far from zero."""
    torch.manual_seed(0)
    linear = nn.Linear(96, 40)
    linear.weight.data += torch.randn(40, 3).repeat_interleave(32, dim=1)
    return linear


@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("name", ["int4", "nf4", "fp4"])
def test_blocks_far_from_zero_lose_no_more_than_their_range_allows(name, double_quant):
    linear = shifted()
    scheme = Scheme(name, 32, double_quant, zero_points=True)
    lost = (QuantizedLinear.from_float(linear, scheme).dequantize() - linear.weight).view(-1, 32).abs().amax(dim=1)
    blocks = linear.weight.view(-1, 32)
    levels = scheme.number_format.codebook().sort().values
    widest = float((levels[1:] - levels[:-1]).max() / (levels[-1] - levels[0]))
    # half the widest step of the levels laid over the block's range; 8-bit scales are off by some percent more
    assert (lost <= 0.5 * widest * (1.15 if double_quant else 1.0001) * (blocks.amax(1) - blocks.amin(1))).all()
    plain = QuantizedLinear.from_float(linear, Scheme(name, 32, double_quant)).dequantize()
    assert lost.mean() < 0.3 * (plain - linear.weight).view(-1, 32).abs().amax(dim=1).mean()


def test_int4_uses_all_sixteen_codes():
    codes = QuantizedLinear.from_float(shifted(), INT4).weight
    assert torch.cat([codes >> 4, codes & 15]).unique().tolist() == list(range(16))


def test_a_constant_block_is_stored_exactly():
    linear = nn.Linear(64, 4, bias=False)
    nn.init.constant_(linear.weight, 0.37)
    assert_close(QuantizedLinear.from_float(linear, INT4).dequantize(), linear.weight.data, atol=1e-7, rtol=0)


@pytest.mark.parametrize(
    "module", [shifted(), nn.Embedding(50, 64), nn.Conv1d(32, 8, 3)], ids=["linear", "rows", "conv"]
)
def test_forward_equals_the_dense_layer_of_the_dequantized_weight(module):
    layer = quantize_module(module, INT4)
    x = {nn.Linear: torch.randn(5, 96), nn.Conv1d: torch.randn(2, 32, 7)}.get(type(module), torch.randint(50, (4, 6)))
    assert_close(layer(x), dense_module(layer)(x), atol=1e-5, rtol=0)


def test_bfloat16_rounds_the_sum_of_level_and_offset_once():
    layer = QuantizedLinear.from_float(shifted().to(torch.bfloat16), INT4)
    assert torch.equal(layer.dequantize(), layer.dequantize(torch.float32).to(torch.bfloat16))
    x = torch.randn(3, 96, dtype=torch.bfloat16)
    # a few roundings of outputs around 3
    assert_close(layer(x).float(), dense_module(layer).float()(x.float()), atol=0.1, rtol=0.02)


def test_the_payload_counts_32_bits_a_block():
    plain, zeros = Scheme("int4", 64), Scheme("int4", 64, zero_points=True)
    shape = (4096, 4096)
    assert zeros.bits_per_weight(shape) == plain.bits_per_weight(shape) + 0.5
    layer = QuantizedLinear(64, 8, False, zeros)
    assert sum(part.numel() for part in layer.stored.values()) == zeros.payload_bytes((8, 64))


def test_rows_that_are_no_whole_blocks_and_formats_without_blocks_are_refused():
    with pytest.raises(FormatError, match="a row of 48 weights is no whole number of blocks of 32"):
        QuantizedLinear(48, 8, False, INT4)
    with pytest.raises(FormatError, match="int8 has no blocks"):
        Scheme("int8", zero_points=True)


def test_values_that_are_not_finite_are_refused():
    linear = shifted()
    linear.weight.data[3, 40] = torch.inf
    with pytest.raises(FormatError, match="NaN or Inf"):
        QuantizedLinear.from_float(linear, INT4)
