"""A few rows with a weight in 16 bits: every instruction set against the product in f64."""

import pytest
import torch
from torch.nn import functional as F

from lorasmith import ops
from lorasmith.errors import FormatError
from lorasmith.ops import native
from lorasmith.ops.native import kernels


def seeded(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("rows", [(1,), (2,), (3, 1), (2, 2), (7,), (16,), (17,), (0,)])
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (13, 79), (32, 64), (33, 1024)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("biased", [False, True])
def test_a_few_rows_times_a_narrow_weight_are_the_product(native_kernels, rows, shape, dtype, biased):
    x, weight = seeded(*rows, shape[1]).to(dtype), seeded(*shape).bfloat16()
    bias = seeded(shape[0]).to(dtype) if biased else None
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    y = ops.narrow_linear(x, weight, bias)
    assert y.dtype == dtype
    # f32 sums of up to 1,024 products of about 1, and one rounding of 16 bits
    torch.testing.assert_close(y.double(), exact, atol=1e-4, rtol=2**-8 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize("rows", [1, 3, 6, 16])
def test_every_element_of_the_result_is_written(native_kernels, rows):
    x, weight, y = seeded(rows, 40), seeded(11, 40).bfloat16(), torch.full((rows, 11), float("nan"))
    kernels().multiply_narrow(x, weight, y, 40, 3, native.level())
    torch.testing.assert_close(y, x @ weight.float().T, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_types_and_strided_weights_give_the_same(native_kernels, dtype):
    x, weight = seeded(2, 40).to(dtype), seeded(40, 6).to(dtype)
    exact = x.double() @ weight.double()
    made = ops.narrow_linear(x, weight.T, None)
    torch.testing.assert_close(made.double(), exact, atol=1e-4, rtol=2**-10)
    narrow = weight.bfloat16()
    strided = ops.narrow_linear(x, narrow.T, None)
    torch.testing.assert_close(strided.double(), x.double() @ narrow.double(), atol=1e-4, rtol=2**-10)


def test_parts_that_do_not_fit_are_named():
    with pytest.raises(FormatError, match="do not fit a weight"):
        ops.narrow_linear(torch.ones(2, 5), torch.ones(3, 4), None)


def test_the_op_suits_torchs_dispatcher(native_kernels):
    arguments = (seeded(2, 1, 64), seeded(7, 64).bfloat16(), seeded(7))
    torch.library.opcheck(torch.ops.lorasmith.narrow_linear.default, arguments)
