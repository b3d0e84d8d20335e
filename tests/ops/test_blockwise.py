"""Blockwise codes, scales and nested scales bit for bit against bitsandbytes; values against the definition."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpu_kernels import OnDevice
from lorasmith import ops
from lorasmith.errors import FormatError
from lorasmith.formats import BLOCKSIZES, dynamic_map, formats
from lorasmith.ops.blockwise import reference

NF4 = formats["nf4"].codebook("cpu")
FP4 = formats["fp4"].codebook("cpu")
NO_NESTED = (None, None, None, 256)


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def seeded(*shape, scale=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * scale


def theirs_4bit(x, name, blocksize):
    packed, scales = torch.ops.bitsandbytes.quantize_4bit.default(x, blocksize, name, torch.uint8)
    return packed.view(-1), scales


def every_finite(dtype):
    """Each finite value of a 16-bit type once, in a shuffled order so that blocks mix magnitudes."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    values = bits.view(dtype)
    values = values[values.isfinite()]
    return values[torch.randperm(len(values), generator=torch.Generator().manual_seed(0))]


CASES = {
    "random": seeded(3, 700),
    "random bf16": seeded(3, 700).bfloat16(),
    "random f16": seeded(3, 700).half(),
    "constant": torch.full((5, 77), 0.3),
    "negative constant": torch.full((64,), -2.0),
    "zero": torch.zeros(129),
    "negative zero": -torch.zeros(129),
    "denormal": seeded(4, 65, scale=1e-39),
    "smallest denormal": torch.full((200,), 1e-45),
    "around the clamp": seeded(4, 65, scale=1e-38),
    "huge": seeded(4, 65, scale=3e37),
    "one element": torch.tensor([-0.7]),
    "odd": seeded(4095),
    "odd, whole blocks but one element": seeded(4097),
    "one huge outlier": torch.cat([seeded(500, scale=1e-3), torch.tensor([3e38])]),
    "ties": torch.cat([reference.boundaries(NF4)[0], torch.ones(1)]).repeat(9),
    "ties fp4": torch.cat([reference.boundaries(FP4)[0], -torch.ones(1)]).repeat(9),
    "every finite bf16": every_finite(torch.bfloat16),
    "every finite f16": every_finite(torch.float16),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_codes_and_scales_are_those_of_bitsandbytes_for_every_block_size(kernels, name, case):
    pytest.importorskip("bitsandbytes")
    x = CASES[case]
    # the interpreter takes seconds for 65,000 values
    sizes = BLOCKSIZES[:2] if isinstance(kernels, OnDevice) and x.numel() > 5000 else BLOCKSIZES
    for blocksize in sizes:
        packed, scales = kernels.quantize_blockwise(x, formats[name].codebook("cpu"), blocksize)
        their_packed, their_scales = theirs_4bit(x, name, blocksize)
        assert same_bits(packed, their_packed), blocksize
        assert same_bits(scales, their_scales), blocksize


@pytest.mark.parametrize("case", CASES)
def test_double_quantized_scales_are_those_of_bitsandbytes(kernels, case):
    functional = pytest.importorskip("bitsandbytes.functional")
    scales = CASES[case].float().abs().reshape(-1)
    offset = scales.mean()
    codes, nested_scales = kernels.quantize_blockwise(scales - offset, dynamic_map(), 256)
    their_codes, state = functional.quantize_blockwise(scales - offset, blocksize=256)
    assert same_bits(codes, their_codes)
    assert same_bits(nested_scales, state.absmax)


@pytest.mark.parametrize("case", sorted(set(CASES) - {"every finite bf16", "one huge outlier"}))  # their means overflow
def test_quantize_4bit_with_compressed_statistics_is_reproduced_whole(case):
    functional = pytest.importorskip("bitsandbytes.functional")
    x = CASES[case]
    packed, scales = ops.quantize_blockwise(x, NF4, 64)
    codes, nested_scales, offset = ops.double_quantize(scales)
    their_packed, state = functional.quantize_4bit(x, blocksize=64, quant_type="nf4", compress_statistics=True)
    assert same_bits(packed, their_packed.view(-1))
    assert same_bits(codes, state.absmax)
    assert same_bits(nested_scales, state.state2.absmax)
    assert same_bits(offset.view(1), state.offset.view(1))


finite_floats = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=200)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=finite_floats, name=st.sampled_from(["nf4", "fp4"]), blocksize=st.sampled_from([32, 64, 128]))
def test_any_finite_tensor_gets_the_bytes_of_bitsandbytes(kernels, values, name, blocksize):
    pytest.importorskip("bitsandbytes")
    x = torch.tensor(values, dtype=torch.float32)
    packed, scales = kernels.quantize_blockwise(x, formats[name].codebook("cpu"), blocksize)
    their_packed, their_scales = theirs_4bit(x, name, blocksize)
    assert same_bits(packed, their_packed)
    assert same_bits(scales, their_scales)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=finite_floats)
def test_any_finite_tensor_gets_the_8_bit_codes_of_bitsandbytes(kernels, values):
    functional = pytest.importorskip("bitsandbytes.functional")
    x = torch.tensor(values, dtype=torch.float32)
    codes, scales = kernels.quantize_blockwise(x, dynamic_map(), 64)
    their_codes, state = functional.quantize_blockwise(x, blocksize=64)
    assert same_bits(codes, their_codes)
    assert same_bits(scales, state.absmax)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("position", [0, 70, 129])
@pytest.mark.parametrize("codebook", [NF4, dynamic_map()], ids=["4 bit", "8 bit"])
def test_a_block_that_holds_nan_or_inf_gets_a_scale_that_is_not_finite(kernels, bad, position, codebook):
    x = seeded(130)
    x[position] = bad
    scales = kernels.quantize_blockwise(x, codebook, 64)[1]
    assert scales.isfinite().tolist() == [block != position // 64 for block in range(3)]


@pytest.mark.parametrize("name", ["nf4", "fp4", "int4"])
@pytest.mark.parametrize("shape", [(1,), (3, 5), (96, 288), (2, 3, 67)])
def test_a_value_is_its_level_times_its_scale(kernels, name, shape):
    codebook = formats[name].codebook("cpu")
    x = seeded(*shape)
    packed, scales = kernels.quantize_blockwise(x, codebook, 64)
    values = kernels.dequantize_blockwise(packed, scales, codebook, 64, shape, *NO_NESTED, torch.float32)
    expected = []
    for element in range(x.numel()):
        byte = int(packed[element // 2])
        expected.append(codebook[byte >> 4 if element % 2 == 0 else byte & 15] * scales[element // 64])
        if element > 500:
            break
    assert torch.equal(values.reshape(-1)[: len(expected)], torch.stack(expected))


@pytest.mark.parametrize("name", ["nf4", "fp4", "int4"])
def test_quantizing_picks_the_nearest_level(kernels, name):
    codebook = formats[name].codebook("cpu")
    x = seeded(64 * 50)
    packed, scales = kernels.quantize_blockwise(x, codebook, 64)
    values = kernels.dequantize_blockwise(packed, scales, codebook, 64, x.shape, *NO_NESTED, torch.float32)
    scaled = x.view(-1, 64) / scales[:, None]
    nearest = (scaled[..., None] - codebook).abs().amin(dim=-1) * scales[:, None]
    # a tie within f32 rounding may go to either side
    torch.testing.assert_close((values - x).abs().view(-1, 64), nearest, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("blocksize", [32, 64, 4096])
@pytest.mark.parametrize("scale", [1e-40, 1.0, 3e37])
@pytest.mark.parametrize("n", [1, 31, 33, 64, 4097, 16384])
def test_native_values_are_the_references_bits(fast_kernels, n, scale, blocksize, dtype):
    packed, scales = reference.quantize_blockwise(seeded(n, scale=scale), NF4, blocksize)
    arguments = (packed, scales, NF4, blocksize, (n,), *NO_NESTED, dtype)
    assert same_bits(fast_kernels.dequantize_blockwise(*arguments), reference.dequantize_blockwise(*arguments))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n", [1, 64 * 256, 64 * 256 + 1, 64 * 700 + 13])
def test_native_values_with_nested_scales_are_the_references_bits(fast_kernels, n, dtype):
    packed, scales = reference.quantize_blockwise(seeded(n), FP4, 64)
    codes, nested_scales, offset = ops.double_quantize(scales)
    arguments = (packed, codes, FP4, 64, (n,), nested_scales, offset, dynamic_map(), 256, dtype)
    assert same_bits(fast_kernels.dequantize_blockwise(*arguments), reference.dequantize_blockwise(*arguments))


def test_values_that_are_streamed_past_the_caches_are_the_references_bits(native_kernels):
    # 32 MiB of f32 and a little: beyond csrc/module.cpp's kStreamBytes; once not on a line of 64 bytes
    n = (8 << 20) + 13
    packed, scales = native_kernels.quantize_blockwise(seeded(n), NF4, 64)
    stored = (packed, scales, NF4, 64, (n,), *NO_NESTED)
    expected = reference.dequantize_blockwise(*stored, torch.float32)
    for start in (0, 1):
        out = torch.full((n + 16,), torch.nan)[start : start + n]
        native_kernels.dequantize_blockwise_out(*stored, out)
        assert same_bits(out, expected)


def test_threads_do_not_change_a_bit(native_kernels):
    x = seeded(5, 64 * 4001 + 3)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        packed, scales = native_kernels.quantize_blockwise(x, NF4, 64)
        values = native_kernels.dequantize_blockwise(packed, scales, NF4, 64, x.shape, *NO_NESTED, torch.bfloat16)
    finally:
        torch.set_num_threads(threads)
    expected, expected_scales = reference.quantize_blockwise(x, NF4, 64)
    assert same_bits(packed, expected)
    assert same_bits(scales, expected_scales)
    again = reference.dequantize_blockwise(expected, expected_scales, NF4, 64, x.shape, *NO_NESTED, torch.bfloat16)
    assert same_bits(values, again)


@pytest.mark.parametrize("codebook", [NF4, dynamic_map()], ids=["4 bit", "8 bit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_working_in_parts_does_not_change_a_bit(monkeypatch, codebook, dtype):
    x = seeded(3 * 4096 + 77).to(dtype)
    whole = reference.quantize_blockwise(x, codebook, 64)
    values = reference.dequantize_blockwise(*whole, codebook, 64, x.shape, *NO_NESTED, dtype)
    monkeypatch.setattr(reference, "PART", 4096)
    parts = reference.quantize_blockwise(x, codebook, 64)
    assert all(map(same_bits, whole, parts))
    assert same_bits(values, reference.dequantize_blockwise(*parts, codebook, 64, x.shape, *NO_NESTED, dtype))


def test_a_strided_input_is_read_in_its_logical_order(kernels):
    x = seeded(66, 130)
    assert same_bits(
        kernels.quantize_blockwise(x.t(), NF4, 64)[0], kernels.quantize_blockwise(x.t().clone(), NF4, 64)[0]
    )


def test_out_is_written_and_returned():
    x = seeded(8, 64)
    packed, scales = ops.quantize_blockwise(x, NF4, 64)
    out = torch.empty(8, 64)
    assert ops.dequantize_blockwise(packed, scales, NF4, 64, (8, 64), torch.float32, out=out) is out
    assert torch.equal(out, ops.dequantize_blockwise(packed, scales, NF4, 64, (8, 64), torch.float32))


def test_nested_scales_cost_at_most_a_step_of_the_dynamic_map():
    x = seeded(512, 64)
    packed, scales = ops.quantize_blockwise(x, NF4, 64)
    codes, nested_scales, offset = ops.double_quantize(scales)
    nested = ops.Nested(nested_scales, offset, dynamic_map())
    plain = ops.dequantize_blockwise(packed, scales, NF4, 64, x.shape, torch.float32)
    through = ops.dequantize_blockwise(packed, codes, NF4, 64, x.shape, torch.float32, nested=nested)
    # half the widest step of the map (0.0071) plus its grid, of the largest deviation from the mean
    assert (plain - through).abs().max() <= 0.0072 * nested_scales.max()


BAD_CALLS = {
    "blocksize": lambda p, s: ops.dequantize_blockwise(p, s, NF4, 65, (8, 64), torch.float32),
    "packed": lambda p, s: ops.dequantize_blockwise(p[1:], s, NF4, 64, (8, 64), torch.float32),
    "scales": lambda p, s: ops.dequantize_blockwise(p, s.bfloat16(), NF4, 64, (8, 64), torch.float32),
    "codebook": lambda p, s: ops.dequantize_blockwise(p, s, NF4[:15], 64, (8, 64), torch.float32),
    "out": lambda p, s: ops.dequantize_blockwise(p, s, NF4, 64, (8, 64), torch.float32, out=torch.empty(64, 8)),
    "nested.scales": lambda p, s: ops.dequantize_blockwise(
        p, s.byte(), NF4, 64, (8, 64), torch.float32, nested=ops.Nested(s, s[0], dynamic_map())
    ),
    "x is": lambda p, s: ops.quantize_blockwise(p, NF4, 64),
    "not empty": lambda p, s: ops.quantize_blockwise(torch.empty(0), NF4, 64),
}


@pytest.mark.parametrize("named", BAD_CALLS)
def test_parts_that_do_not_fit_are_refused_by_name(named):
    packed, scales = ops.quantize_blockwise(seeded(8, 64), NF4, 64)
    with pytest.raises(FormatError, match=named):
        BAD_CALLS[named](packed, scales)


def test_the_schemas_and_fakes_tell_the_truth():
    x = seeded(3, 70)
    packed, scales = ops.quantize_blockwise(x, NF4, 64)
    stored = (packed, scales, NF4, 64, (3, 70), *NO_NESTED)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.lorasmith.quantize_blockwise.default, (x, NF4, 64), test_utils=checks)
    torch.library.opcheck(torch.ops.lorasmith.quantize_blockwise.default, (x, dynamic_map(), 64), test_utils=checks)
    torch.library.opcheck(torch.ops.lorasmith.dequantize_blockwise.default, (*stored, x.dtype), test_utils=checks)
    torch.library.opcheck(torch.ops.lorasmith.dequantize_blockwise_out.default, (*stored, x.clone()), test_utils=checks)
