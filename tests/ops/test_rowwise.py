"""Row-wise int8: bytes against bitsandbytes, the product against its plain definition and against Linear8bitLt."""

import pytest
import torch

from gpu_kernels import triton_kernels
from lorasmith import ops
from lorasmith.errors import FormatError
from lorasmith.ops.rowwise import cpu, reference


def seeded(*shape, scale=1.0, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def zero_row():
    weight = seeded(6, 33)
    weight[2] = 0
    return weight


CASES = {
    "random": seeded(48, 96),
    "bf16": seeded(48, 96).bfloat16(),
    "odd": seeded(7, 33),
    "constant": torch.full((3, 40), -0.3),
    "a row of zeros": zero_row(),
    "f16 denormal": seeded(5, 64, scale=1e-6),
    "below f16": seeded(5, 64, scale=1e-9),
    "huge": seeded(5, 64, scale=1e4),
    "ties": torch.arange(-127, 128).float().div(2).view(1, -1),
}


@pytest.mark.parametrize("case", CASES)
def test_codes_and_absmax_are_those_of_bitsandbytes(case):
    functional = pytest.importorskip("bitsandbytes.functional")
    codes, absmax = ops.quantize_rowwise(CASES[case])
    their_codes, their_absmax, _ = functional.int8_vectorwise_quant(CASES[case].half())
    assert torch.equal(codes, their_codes)
    assert torch.equal(absmax.view(torch.int32), their_absmax.view(torch.int32))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 70000.0])
def test_a_row_that_int8_cannot_hold_gets_an_absmax_that_is_not_finite(bad):
    weight = seeded(4, 32)
    weight[1, 3] = bad
    assert ops.quantize_rowwise(weight)[1].isfinite().tolist() == [True, False, True, True]


def test_values_are_code_times_absmax_over_127():
    functional = pytest.importorskip("bitsandbytes.functional")
    codes, absmax = ops.quantize_rowwise(seeded(48, 96))
    values = ops.dequantize_rowwise(codes, absmax, torch.float32)
    # two roundings of f32
    torch.testing.assert_close(values.double(), codes.double() * absmax.double()[:, None] / 127, atol=0, rtol=3e-7)
    assert torch.equal(values, functional.int8_vectorwise_dequant(codes, absmax))


@pytest.mark.parametrize("multiply", [reference.int8_matmul, cpu.onednn_int8_matmul])
@pytest.mark.parametrize("rows, width, columns", [(1, 5, 3), (17, 1024, 8), (3, 5000, 33)])
def test_integer_products_are_exact(multiply, rows, width, columns):
    # all codes at their extreme: the sums pass 2**24, beyond which f32 skips integers
    a = torch.full((rows, width), 127, dtype=torch.int8)
    b = torch.full((columns, width), 127, dtype=torch.int8)
    b[:, ::7] = -126
    expected = a.long() @ b.long().t()
    assert torch.equal(multiply(a, b), expected.int())


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 16, 33, 70])
@pytest.mark.parametrize("columns, width", [(1, 1), (3, 15), (8, 16), (13, 79), (33, 1024), (21, 2100)])
def test_the_native_integer_product_is_that_of_the_reference(native_kernels, rows, columns, width):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-128, 128, (n, width), generator=generator, dtype=torch.int8) for n in (rows, columns))
    assert torch.equal(cpu.int8_matmul(a, b), reference.int8_matmul(a, b))


@pytest.mark.parametrize("left, right", [(-128, -128), (-128, 127), (127, 127)])
def test_the_native_integer_product_is_exact_at_the_extremes(native_kernels, left, right):
    a, b = torch.full((5, 5003), left, dtype=torch.int8), torch.full((9, 5003), right, dtype=torch.int8)
    b[:, ::7] = -right - 1
    assert torch.equal(cpu.int8_matmul(a, b), (a.long() @ b.long().t()).int())


def test_the_native_integer_product_takes_strided_and_empty_matrices(native_kernels):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-128, 128, (40, n), generator=generator, dtype=torch.int8) for n in (5, 9))
    assert torch.equal(cpu.int8_matmul(a.t(), b.t()), reference.int8_matmul(a.t(), b.t()))
    assert cpu.int8_matmul(a.t()[:0], b.t()).shape == (0, 9)
    assert torch.equal(cpu.int8_matmul(a.t()[:, :0], b.t()[:, :0]), torch.zeros(5, 9, dtype=torch.int32))


def definition(x, codes, absmax, bias, threshold):
    """LLM.int8() in f64, feature by feature."""
    outlier = (x.abs() >= threshold).any(dim=0)
    kept = x.masked_fill(x.abs() >= threshold, 0)
    x_absmax = kept.abs().amax(dim=1, keepdim=True)
    x_codes = (x * (127.0 / x_absmax)).round().masked_fill(outlier, 0)
    weight = codes.double() * absmax.double()[:, None] / 127
    y = (x_codes.double() * x_absmax.double() / 127) @ weight.t() + x.double()[:, outlier] @ weight[:, outlier].t()
    return y if bias is None else y + bias.double()


@pytest.mark.parametrize("outliers", [(), (3,), (3, 50, 95)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_the_product_is_that_of_the_definition(outliers, with_bias):
    codes, absmax = ops.quantize_rowwise(seeded(48, 96))
    x, bias = seeded(9, 96, seed=1), seeded(48, seed=2) if with_bias else None
    for feature in outliers:
        x[feature % 9, feature] = 6.0 + feature
    y = ops.rowwise_linear(x, codes, absmax, bias)
    # a few roundings of f32
    torch.testing.assert_close(y.double(), definition(x, codes, absmax, bias, 6.0), atol=1e-4, rtol=1e-5)


def test_exactly_the_threshold_is_an_outlier_and_just_below_is_not():
    codes, absmax = ops.quantize_rowwise(seeded(8, 32))
    at, below = seeded(2, 32, seed=1), seeded(2, 32, seed=1)
    at[0, 5] = 6.0
    below[0, 5] = 5.999
    for x in (at, below):
        torch.testing.assert_close(
            ops.rowwise_linear(x, codes, absmax, None).double(),
            definition(x, codes, absmax, None, 6.0),
            atol=1e-4,
            rtol=0,
        )
    other_features = [i for i in range(32) if i != 5]
    without = ops.rowwise_linear(at[:, other_features], codes[:, other_features], absmax, None)
    outlier_alone = at[:, 5:6] @ ops.dequantize_rowwise(codes[:, 5:6], absmax, torch.float32).t()
    torch.testing.assert_close(ops.rowwise_linear(at, codes, absmax, None), without + outlier_alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize("magnitude", [1.0, 20.0])
def test_the_product_is_that_of_linear8bitlt(magnitude):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    weight, bias, x = seeded(48, 96), seeded(48, seed=2), seeded(9, 96, seed=1).half().float()
    x[2, 7] = magnitude
    theirs = bitsandbytes.nn.Linear8bitLt(96, 48, has_fp16_weights=False, threshold=6.0)
    theirs.load_state_dict({"weight": weight, "bias": bias})
    theirs = theirs.to("cpu").eval()
    codes, absmax = ops.quantize_rowwise(weight)
    # theirs multiplies by 1 / 127^2 rounded to seven digits
    torch.testing.assert_close(ops.rowwise_linear(x, codes, absmax, bias), theirs(x).detach(), atol=1e-3, rtol=1e-4)


def test_the_gradient_goes_through_the_dequantized_weight():
    codes, absmax = ops.quantize_rowwise(seeded(48, 96))
    x = seeded(2, 3, 96, seed=1).requires_grad_()
    bias = torch.zeros(48, requires_grad=True)
    upstream = seeded(2, 3, 48, seed=3)
    (ops.rowwise_linear(x, codes, absmax, bias) * upstream).sum().backward()
    # sums of 48 products in f32
    torch.testing.assert_close(
        x.grad, upstream @ ops.dequantize_rowwise(codes, absmax, torch.float32), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(bias.grad, upstream.sum((0, 1)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_product_has_the_dtype_of_its_input(dtype):
    codes, absmax = ops.quantize_rowwise(seeded(48, 96))
    x = seeded(3, 96, seed=1)
    x[0, 0] = 8
    y = ops.rowwise_linear(x.to(dtype), codes, absmax, None)
    assert y.dtype == dtype
    # eight bits of significand on sums of size 10
    torch.testing.assert_close(y.float(), ops.rowwise_linear(x, codes, absmax, None), atol=0.2, rtol=0.05)


# --- Triton


@pytest.mark.parametrize("case", CASES)
def test_on_a_gpu_codes_absmax_and_values_are_the_references_bit_for_bit(case):
    kernels, weight = triton_kernels("rowwise"), CASES[case][:5]
    codes, absmax = kernels.quantize_rowwise(weight)
    for mine, other in zip((codes, absmax), reference.quantize_rowwise(weight), strict=True):
        assert torch.equal(mine, other)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        values = kernels.dequantize_rowwise(codes, absmax, dtype)
        assert torch.equal(values, reference.dequantize_rowwise(codes, absmax, dtype))


def test_on_a_gpu_rows_of_several_tiles_are_rounded_as_the_reference_rounds_them():
    # half of a row's largest value is between two codes: which one is a matter of the last bit of 127 / absmax
    weight = seeded(3, 5000)
    weight[:, 17] = weight.half().abs().amax(1).float() / 2
    for mine, other in zip(
        triton_kernels("rowwise").quantize_rowwise(weight), reference.quantize_rowwise(weight), strict=True
    ):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 70000.0])
def test_on_a_gpu_a_row_that_int8_cannot_hold_is_told_as_well(bad):
    weight = seeded(4, 32)
    weight[1, 3] = bad
    codes, absmax = triton_kernels("rowwise").quantize_rowwise(weight)
    assert absmax.isfinite().tolist() == [True, False, True, True]
    assert torch.equal(codes, reference.quantize_rowwise(weight)[0])


@pytest.mark.parametrize("rows, width, columns", [(1, 5, 3), (17, 600, 8), (3, 5000, 33), (0, 8, 8)])
def test_on_a_gpu_integer_products_are_exact(rows, width, columns):
    a, b = (torch.full((n, width), 127, dtype=torch.int8) for n in (rows, columns))
    b[:, ::7] = -126
    assert torch.equal(triton_kernels("rowwise").int8_matmul(a, b), (a.long() @ b.long().t()).int())


@pytest.mark.parametrize("threshold", [0.0, 6.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_on_a_gpu_a_layer_is_that_of_the_definition(threshold, dtype):
    # threshold 1 leaves out all 97 features
    codes, absmax = reference.quantize_rowwise(seeded(48, 97))
    x, bias = seeded(18, 97, seed=1), seeded(48, seed=2).to(dtype)
    x[2, 7], x[3, 50], x[17, 96] = 20.0, -6.0, 9.0
    x = x.to(dtype)
    y = triton_kernels("rowwise").rowwise_linear(x.view(2, 9, 97), bias, codes, absmax, threshold)
    assert (y.dtype, y.shape) == (dtype, (2, 9, 48))
    exact = reference.rowwise_linear(x.double(), bias.double(), codes, absmax, threshold)
    # one rounding to 24, 8 or 11 bits of values up to 60
    unit = {torch.float32: 2**-18, torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]
    torch.testing.assert_close(y.view(18, 48).double(), exact, rtol=unit, atol=1e-4)


def test_on_a_gpu_a_row_without_numbers_harms_no_other_and_strided_rows_are_read_where_they_are():
    kernels, (codes, absmax) = triton_kernels("rowwise"), reference.quantize_rowwise(seeded(48, 96))
    spread = seeded(5, 128, seed=1)
    spread[1, 3] = torch.nan
    y = kernels.rowwise_linear(spread[:, :96], None, codes, absmax, 6.0)
    assert y.isfinite().all(1).tolist() == [True, False, True, True, True]
    expected = reference.rowwise_linear(spread[:, :96], None, codes, absmax, 6.0)
    torch.testing.assert_close(y, expected, atol=1e-4, rtol=1e-5, equal_nan=True)


def test_on_a_gpu_the_gradient_goes_through_the_dequantized_weight():
    codes, absmax = reference.quantize_rowwise(seeded(48, 96))
    upstream = seeded(2, 3, 48, seed=3)
    expected = upstream @ reference.dequantize_rowwise(codes, absmax, torch.float32)
    found = triton_kernels("rowwise").rowwise_linear_backward(upstream, codes, absmax)
    # sums of 48 products in f32
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_rows_of_zeros_give_the_bias():
    codes, absmax = ops.quantize_rowwise(zero_row())
    y = ops.rowwise_linear(torch.zeros(2, 33), codes, absmax, torch.ones(6))
    assert torch.equal(y, torch.ones(2, 6))


def test_an_empty_batch_gives_an_empty_result():
    codes, absmax = ops.quantize_rowwise(seeded(6, 33))
    x = torch.empty(0, 33, requires_grad=True)
    y = ops.rowwise_linear(x, codes, absmax, None)
    assert y.shape == (0, 6)
    y.sum().backward()
    assert x.grad.shape == (0, 33)


def test_parts_that_do_not_fit_are_refused():
    codes, absmax = ops.quantize_rowwise(seeded(48, 96))
    with pytest.raises(FormatError, match="view the stored bytes as int8"):
        ops.dequantize_rowwise(codes.view(torch.uint8), absmax, torch.float32)
    with pytest.raises(FormatError, match="one a row"):
        ops.dequantize_rowwise(codes, absmax[1:], torch.float32)
    with pytest.raises(FormatError, match="do not fit"):
        ops.rowwise_linear(torch.ones(2, 95), codes, absmax, None)
    with pytest.raises(FormatError, match="float matrix"):
        ops.quantize_rowwise(torch.ones(3))


def test_the_schemas_and_fakes_tell_the_truth():
    codes, absmax = ops.quantize_rowwise(seeded(48, 96))
    library, checks = torch.ops.lorasmith, ("test_schema", "test_faketensor")
    x = seeded(2, 3, 96)
    torch.library.opcheck(library.quantize_rowwise.default, (seeded(4, 8),), test_utils=checks)
    torch.library.opcheck(library.dequantize_rowwise.default, (codes, absmax, torch.bfloat16), test_utils=checks)
    torch.library.opcheck(library.int8_matmul.default, (codes, codes), test_utils=checks)
    torch.library.opcheck(library.rowwise_linear_backward.default, (x[..., :48], codes, absmax), test_utils=checks)
    torch.library.opcheck(library.rowwise_linear.default, (x, None, codes, absmax, 6.0), test_utils=checks)
