"""A weight with an update stands for the dense sum: the same values and gradients, without the sum."""

import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from lorasmith.errors import AttachError
from lorasmith.ops import UpdatedWeight

# experts, rows and columns of a matrix, rank
E, M, N, R = 3, 8, 16, 2
OFFSETS = torch.tensor([4, 4, 7], dtype=torch.int32)
PRODUCTS = {
    "a linear layer of one expert": lambda x, w: functional.linear(x(5, N), w[1]),
    "a linear layer with bias": lambda x, w: functional.linear(x(5, N), w[torch.tensor(2)], torch.ones(M)),
    "a matrix from behind": lambda x, w: x(5, M) @ w[0],
    "a batch from behind": lambda x, w: torch.bmm(x(E, 5, M), w),
    "a batch from before": lambda x, w: torch.bmm(w[torch.tensor([2, 0, 0, 1])], x(4, N, 1)),
    "grouped rows": lambda x, w: functional.grouped_mm(x(7, M), w, offs=OFFSETS),
    "grouped rows, transposed": lambda x, w: functional.grouped_mm(x(7, N), w.transpose(-2, -1), offs=OFFSETS),
    "transformers' own grouped rows": lambda x, w: torch.ops.transformers.grouped_mm_fallback(x(7, N), w.mT, OFFSETS),
    "no product at all": lambda x, w: (w * 2).sum(0) + w.pow(2)[0] + torch.stack([w, w])[1, 2],
    "an index into the matrices": lambda x, w: w[:, 1:3] * 2,
    "axes by name": lambda x, w: (
        x(5, N) @ w.transpose(dim0=-2, dim1=-1)[1] + x(5, N) @ torch.transpose(w[0], 0, dim1=1)
    ),
    "no rule for operands by name": lambda x, w: (
        torch.matmul(input=x(5, M), other=w[1]) + functional.linear(x(5, M), weight=w[0].T)
    ),
    "a type and back": lambda x, w: functional.linear(x(5, N).double(), w.to(torch.float64)[1]).float(),
}


@pytest.fixture(params=PRODUCTS)
def product(request):
    import transformers.integrations.moe  # noqa: F401, registers its grouped product

    return PRODUCTS[request.param]


def parts():
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator) for shape in ((E, M, N), (E, M, R), (E, R, N))]


def result(product, make):
    """The product and the gradients of both factors and of x."""
    base, left, right = parts()
    left, right, inputs = left.requires_grad_(), right.requires_grad_(), []

    def x(*shape):
        inputs.append(torch.linspace(-1, 1, torch.Size(shape).numel()).reshape(shape).requires_grad_())
        return inputs[-1]

    y = product(x, make(base, left, right))
    (y * torch.linspace(0, 1, y.numel()).reshape(y.shape)).sum().backward()
    return [y.detach(), left.grad, right.grad, *(given.grad for given in inputs)]


@pytest.mark.parametrize(
    "write",
    [
        lambda w: w.mul_(2),
        lambda w: functional.relu_(w),
        lambda w: w.__setitem__(0, 0.0),
        lambda w: setattr(w, "data", torch.zeros(E, M, N)),
        lambda w: torch.nn.init.zeros_(w),
        lambda w: torch.add(torch.ones(E, M, N), 1, out=w),
        lambda w: w.copy_(torch.ones(E, M, N)),
    ],
)
def test_what_would_write_into_it_is_refused(write):
    weight = UpdatedWeight.of(*parts(), 0.5)
    with pytest.raises(AttachError, match="would write into a weight that an adapter changes"), torch.no_grad():
        write(weight)


def test_it_gives_the_dense_sums_values_and_gradients(product):
    lazy = result(product, lambda base, left, right: UpdatedWeight.of(base, left, right, 0.5))
    plain = result(product, lambda base, left, right: base + 0.5 * left @ right)
    # two orders of f32 sums of at most 12 terms
    for ours, dense in zip(lazy, plain, strict=True):
        assert_close(ours, dense, atol=2e-5, rtol=1e-5)


def test_updates_stack_as_adapters_do(product):
    def twice(base, left, right):
        return UpdatedWeight.of(UpdatedWeight.of(base, left, right, 0.5), left, right, -2.0)

    for ours, dense in zip(
        result(product, twice), result(product, lambda base, left, right: base - 1.5 * left @ right), strict=True
    ):
        assert_close(ours, dense, atol=5e-5, rtol=1e-5)


def test_products_never_make_the_sum(monkeypatch):
    monkeypatch.setattr(UpdatedWeight, "dense", lambda self: pytest.fail("the sum was made"))
    for name, product in PRODUCTS.items():
        if not name.startswith(("no", "an index")):
            result(product, lambda base, left, right: UpdatedWeight.of(base, left, right, 0.5))


def test_it_shows_the_shape_and_type_of_the_weight():
    base, left, right = parts()
    weight = UpdatedWeight.of(base.bfloat16(), left, right, 1.0)
    assert (weight.shape, weight.dtype, weight.dim(), weight.size(-1)) == ((E, M, N), torch.bfloat16, 3, N)
    assert weight.device == base.device
    assert len(weight) == E
    assert weight.dense().dtype == torch.bfloat16


def test_ranks_that_the_kernel_would_not_take_are_filled_up():
    # bf16 rows of rank 2 are 4 bytes, the kernel wants 16
    base, left, right = (part.bfloat16() for part in parts())
    rows = torch.ones(7, M, dtype=torch.bfloat16)
    ours = functional.grouped_mm(rows, UpdatedWeight.of(base, left, right, 0.5), offs=OFFSETS)
    dense = functional.grouped_mm(rows, base + 0.5 * left @ right, offs=OFFSETS)
    # bf16 keeps 8 bits of sums of size 10
    assert_close(ours, dense, atol=0.1, rtol=0.02)
