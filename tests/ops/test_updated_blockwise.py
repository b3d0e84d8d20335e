"""An update in the same product as its stored weight: each way of the kernels, and the step that takes them."""

import pytest
import torch

from gpu_kernels import triton_kernels
from lorasmith import ops
from lorasmith.formats import formats
from lorasmith.ops.adapted_linear import product
from stored import stored_weight

NF4 = formats["nf4"].codebook("cpu")
WAYS = ("fused", "stacked", "buffer")
# rows, weight, block size, nested, rank, type: ranks and columns that end within a tile, and few rows
CASES = [
    (70, (66, 192), 64, True, 5, torch.bfloat16),
    (33, (40, 96), 32, False, 16, torch.float32),
    (34, (20, 256), 256, True, 40, torch.float16),
    (3, (20, 64), 64, False, 8, torch.bfloat16),
]
# f32 sums in another order; in 16 bits the weight and the result are rounded, and in "buffer" the sum before the update
CLOSE = {torch.float32: 1e-4, torch.float16: 0.03, torch.bfloat16: 0.2}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rows, shape, blocksize, nested, rank, dtype", CASES)
def test_every_way_gives_the_product_with_the_update(
    way, rows, shape, blocksize, nested, rank, dtype, monkeypatch, poisoned_memory
):
    monkeypatch.setenv("LORASMITH_CHOICES", way)
    generator = torch.Generator().manual_seed(rows)
    stored, weight = stored_weight(shape, blocksize, nested, generator)
    kernels, (out_features, in_features) = triton_kernels("updated_blockwise"), shape
    normal = lambda *sizes: torch.randn(*sizes, generator=generator).to(dtype)  # noqa: E731
    # every other column of a wider tensor, and factors that are stored the other way round
    x, grad = normal(rows, 2 * in_features)[:, ::2], normal(rows, 2 * out_features)[:, ::2]
    low, bias, a, b = (
        normal(rows, rank),
        normal(out_features),
        normal(in_features, rank).T,
        normal(rank, out_features).T,
    )
    y = kernels.updated_blockwise_linear(x, bias, low, b, *stored)
    grad_x = kernels.updated_blockwise_linear_backward(grad, low, a, *stored)
    assert (y.dtype, grad_x.dtype) == (dtype, dtype)
    expected = x.float() @ weight.T + bias.float() + low.float() @ b.float().T
    torch.testing.assert_close(y.float(), expected, atol=CLOSE[dtype], rtol=2**-7)
    expected = grad.float() @ weight + low.float() @ a.float()
    torch.testing.assert_close(grad_x.float(), expected, atol=CLOSE[dtype], rtol=2**-7)


@pytest.mark.parametrize("way", ("fused", "stacked"))
def test_a_sum_in_16_bits_is_rounded_once(way, monkeypatch):
    # 256 + 1 is no bfloat16, and twice the half of it is lost where the product is rounded before the update comes
    monkeypatch.setenv("LORASMITH_CHOICES", way)
    generator = torch.Generator().manual_seed(0)
    stored, weight = stored_weight((16, 64), 64, False, generator)
    x = torch.randn(40, 64, generator=generator).bfloat16()
    low, b = torch.randn(40, 4, generator=generator).bfloat16(), torch.randn(16, 4, generator=generator).bfloat16()
    y = triton_kernels("updated_blockwise").updated_blockwise_linear(x, None, low, b, *stored)
    exact = x.double() @ weight.bfloat16().double().T + low.double() @ b.double().T
    # f32 sums next to the middle between two values may fall either way
    assert (y == exact.to(torch.bfloat16)).float().mean() > 0.99


def test_operands_of_different_types_and_other_weights_fall_to_the_reference():
    generator = torch.Generator().manual_seed(0)
    kernels = triton_kernels("updated_blockwise")
    # blocks that cross rows
    stored, weight = stored_weight((9, 96), 64, False, generator)
    x, low, b = (torch.randn(*sizes, generator=generator) for sizes in ((40, 96), (40, 4), (9, 4)))
    y = kernels.updated_blockwise_linear(x, None, low, b, *stored)
    torch.testing.assert_close(y, x @ weight.T + low @ b.T, atol=1e-4, rtol=1e-5)
    mixed = kernels.updated_blockwise_linear(x.bfloat16(), None, low, b, *stored)
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(mixed.float(), y, atol=0.2, rtol=2**-7)


@pytest.mark.parametrize("nested", [False, True])
def test_values_go_into_columns_of_a_wider_matrix_and_nowhere_else(nested):
    stored, weight = stored_weight((10, 192), 64, nested, torch.Generator().manual_seed(0))
    wide = torch.full((10, 208), 7.0)
    out = wide[:, :192]
    triton_kernels("blockwise").dequantize_into_columns(stored, out)
    assert torch.equal(out, weight)
    assert (wide[:, 192:] == 7.0).all()


def test_the_ops_suit_torchs_dispatcher():
    stored, _ = stored_weight((7, 64), 64, True, torch.Generator().manual_seed(0))
    low = torch.randn(5, 4)
    torch.library.opcheck(
        torch.ops.lorasmith.updated_blockwise_linear.default,
        (torch.randn(5, 64), torch.randn(7), low, torch.randn(7, 4), *stored),
    )
    torch.library.opcheck(
        torch.ops.lorasmith.updated_blockwise_linear_backward.default,
        (torch.randn(5, 7), low, torch.randn(4, 64), *stored),
    )


# the same formula in one operation, or in two
@pytest.mark.parametrize("fields", [{}, {"gain": True}, {"start": True}, {"dropout": 0.5}, {"rows": slice(1, 4)}])
def test_a_step_takes_the_one_operation_where_it_serves_and_gives_the_same(fields, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    stored, _ = stored_weight((20, 64), 64, True, generator)
    normal = lambda *sizes: torch.randn(*sizes, generator=generator)  # noqa: E731
    given = dict(fields)
    if "gain" in given:
        given["gain"] = normal(20).requires_grad_()
    if "start" in given:
        given["start"] = (normal(3, 64), normal(20, 3))
    tensors = [normal(2, 3, 64), normal(20), normal(4, 64), normal(20, 4)]
    x, bias, a, b = (tensor.requires_grad_() for tensor in tensors)
    calls = []

    def one_step():
        torch.manual_seed(1)
        y = ops.adapted_linear(x, ops.BlockwiseProduct(stored), bias, [ops.LowRank(a, b, 0.5, **given)])
        trained = [x, bias, a, b, *([given["gain"]] if "gain" in given else [])]
        return y, *torch.autograd.grad(y.square().sum(), trained)

    apart = one_step()
    # the CPU has the reference of the ops, which its own way does not take
    for name in ("updated_blockwise_linear", "updated_blockwise_linear_backward"):
        monkeypatch.setitem(product.NATIVE_KERNELS, name, {"cpu"})
        op = getattr(torch.ops.lorasmith, name)
        counted = lambda *given, op=op, name=name: calls.append(name) or op.default(*given)  # noqa: E731
        monkeypatch.setattr(torch.ops.lorasmith, name, type("Counted", (), {"default": staticmethod(counted)}))
    together = one_step()
    forward, backward = ["updated_blockwise_linear"], ["updated_blockwise_linear_backward"]
    # dropout falls on what comes back too, and rows of its own leave the others alone
    expected = {"dropout": forward, "rows": []}.get(next(iter(fields), ""), forward + backward)
    assert calls == expected
    for mine, other in zip(together, apart, strict=True):
        assert torch.equal(mine, other)
