"""Root mean square norms: every instruction set against the formula, Triton's against the reference."""

from importlib import import_module

import pytest
import torch

from gpu_kernels import triton_kernels
from lorasmith import ops
from lorasmith.ops.rms_norm import reference

SIZES = [(1, 8), (3, 5), (7, 131), (4, 1024)]
CONVENTIONS = [(False, True), (True, False), (False, False)]
FLOATS = [torch.float32, torch.bfloat16, torch.float16]


def seeded(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def formula(x, weight, plus_one):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * (weight + 1 if plus_one else weight)


@pytest.mark.parametrize("rows, columns", SIZES)
@pytest.mark.parametrize("plus_one, rounds_first", CONVENTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_are_those_of_the_formula(native_kernels, rows, columns, plus_one, rounds_first, dtype):
    x, weight = seeded(2, rows, columns).to(dtype).requires_grad_(), seeded(columns).to(dtype).requires_grad_()
    grad = seeded(2, rows, columns).to(dtype)
    y = ops.rms_norm(x, weight, 1e-6, plus_one=plus_one, rounds_first=rounds_first)
    made = (y, *torch.autograd.grad(y, (x, weight), grad))
    wide = [tensor.detach().double().requires_grad_() for tensor in (x, weight)]
    expected = formula(*wide, plus_one)
    wanted = (expected, *torch.autograd.grad(expected, wide, grad.double()))
    # some roundings of the type; gradients of the weight sum over the rows
    unit = 2**-6 if dtype == torch.bfloat16 else 2**-18
    for mine, other in zip(made, wanted, strict=True):
        assert mine.dtype == dtype
        bound = unit * max(1.0, float(other.detach().abs().max()))
        torch.testing.assert_close(mine.double(), other, rtol=unit, atol=bound)


def test_a_row_without_a_number_stays_so_and_harms_no_other(native_kernels):
    x = seeded(3, 32)
    x[1, 5] = float("nan")
    y = ops.rms_norm(x, torch.ones(32), 1e-6)
    assert y[1].isnan().all()
    assert y[[0, 2]].isfinite().all()


def assert_within_roundings(mine, other):
    """Equal but for some f32 roundings of a row's largest value; one rounding of a 16-bit value, and that seldom."""
    assert mine.dtype == other.dtype and mine.shape == other.shape
    apart, size = (mine.double() - other.double()).abs(), other.double().abs()
    largest = size.max() if size.numel() else 0.0
    if mine.dtype == torch.float32:
        assert (apart <= 2e-6 * largest).all()
    else:
        assert (apart <= 2 * torch.finfo(mine.dtype).eps * size + 2e-6 * largest).all()
        assert (apart > 0).sum() <= 0.01 * apart.numel() + 1


def arguments(shape, dtype):
    return seeded(*shape).to(dtype), (seeded(*shape) + 0.25).to(dtype), (seeded(shape[-1]) + 1).to(dtype)


@pytest.mark.parametrize("shape", [(2, 3, 5), (19, 131), (1, 16384)])
@pytest.mark.parametrize("plus_one, rounds_first", CONVENTIONS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.usefixtures("poisoned_memory")
def test_triton_gives_what_the_reference_gives(shape, plus_one, rounds_first, dtype):
    kernels = triton_kernels("rms_norm")
    grad, x, weight = arguments(shape, dtype)
    y, rms = kernels.rms_norm(x, weight, 1e-6, plus_one, rounds_first)
    expected, expected_rms = reference.rms_norm(x, weight, 1e-6, plus_one, rounds_first)
    assert_within_roundings(y, expected)
    torch.testing.assert_close(rms, expected_rms, rtol=1e-6, atol=0)
    given = (grad, x, weight, expected_rms, plus_one, rounds_first)
    for trains in (True, False):
        of_x, of_weight = kernels.rms_norm_backward(*given, trains)
        expected_of_x, expected_of_weight = reference.rms_norm_backward(*given, trains)
        assert_within_roundings(of_x, expected_of_x)
        assert_within_roundings(of_weight, expected_of_weight)


@pytest.mark.parametrize("columns", [600, 3000])
@pytest.mark.usefixtures("poisoned_memory")
def test_triton_sums_the_gradient_of_the_weight_over_programs_of_several_tiles(columns, monkeypatch):
    kernels = triton_kernels("rms_norm")
    monkeypatch.setattr(import_module("lorasmith.ops.rms_norm.triton"), "PARTS", 3)
    grad, x, weight = arguments((29, columns), torch.float32)
    _, rms = reference.rms_norm(x, weight, 1e-6, False, True)
    given = (grad, x, weight, rms, False, True, True)
    for mine, other in zip(kernels.rms_norm_backward(*given), reference.rms_norm_backward(*given), strict=True):
        assert_within_roundings(mine, other)


def test_triton_reads_tensors_with_gaps():
    kernels = triton_kernels("rms_norm")
    grad, x, weight = arguments((6, 40), torch.bfloat16)
    apart = [tensor.mT.contiguous().mT for tensor in (grad, x)]
    _, rms = reference.rms_norm(x, weight, 1e-6, False, True)
    assert torch.equal(*[kernels.rms_norm(given, weight, 1e-6, False, True)[0] for given in (x, apart[1])])
    for trains in (True, False):
        made, other = (
            kernels.rms_norm_backward(*given, weight, rms, False, True, trains) for given in ((grad, x), apart)
        )
        assert torch.equal(made[0], other[0]) and torch.equal(made[1], other[1])


def test_triton_leaves_other_types_and_rows_without_end_to_the_reference():
    kernels = triton_kernels("rms_norm")
    for x in (seeded(1, 40000), seeded(3, 8).double(), seeded(0, 8)):
        given = (x, x.new_ones(x.shape[-1]), 1e-6, False, True)
        # a GPU sums a row in another order
        torch.testing.assert_close(kernels.rms_norm(*given)[0], reference.rms_norm(*given)[0])
