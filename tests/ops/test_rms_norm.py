"""Root mean square norms: every instruction set against the formula."""

import pytest
import torch

from lorasmith import ops

SIZES = [(1, 8), (3, 5), (7, 131), (4, 1024)]


def seeded(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def formula(x, weight, plus_one):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * (weight + 1 if plus_one else weight)


@pytest.mark.parametrize("rows, columns", SIZES)
@pytest.mark.parametrize("plus_one, rounds_first", [(False, True), (True, False), (False, False)])
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
