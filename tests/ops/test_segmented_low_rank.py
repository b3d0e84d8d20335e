"""Thin products of rows with adapters of their own: each row's own product; Triton against the reference."""

import pytest
import torch

from gpu_kernels import triton_kernels
from lorasmith import ops
from lorasmith.errors import FormatError
from lorasmith.ops.segmented_low_rank import reference
from lorasmith.ops.segmented_low_rank.schema import Segments

TYPES = [torch.float32, torch.bfloat16, torch.float16]
# one unit in the last of 24, 8 and 11 bits, for sums that are rounded once or twice
UNITS = {torch.float32: 2**-18, torch.bfloat16: 2**-7, torch.float16: 2**-9}
RANKS, SCALES = (3, 0, 16, 5), (0.5, 1.0, -2.0, 1.5)


def seeded(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def problem(rows, features, dtype, ranks=RANKS):
    """x or y [N, F], stacked factors [S, F], and the segments of rows that are scattered over the adapters."""
    adapters = torch.randint(0, len(ranks), (rows,), generator=torch.Generator().manual_seed(rows))
    segments = Segments.of(adapters, ranks, SCALES[: len(ranks)])
    return seeded(rows, features).to(dtype), seeded(sum(ranks), features).to(dtype), segments


def hidden(segments, dtype):
    """h [n, R] in order, 0 beyond each row's own rank, as projections leave it."""
    h_nR = seeded(len(segments.parts.order), segments.rank)
    for k, rank in enumerate(segments.parts.ranks.diff().tolist()):
        h_nR[segments.parts.bounds[k] : segments.parts.bounds[k + 1], rank:] = 0
    return h_nR.to(dtype)


def test_the_reference_gives_each_row_the_product_with_its_own_factors():
    x, a, segments = problem(20, 24, torch.float64)
    h_nR = reference.project(x, a, *segments.parts, segments.rank)
    y = reference_add(seeded(20, 24).double(), h_nR, a, segments)
    adapters = torch.randint(0, 4, (20,), generator=torch.Generator().manual_seed(20)).tolist()
    firsts = segments.parts.ranks.tolist()
    for row, k in enumerate(adapters):
        own = a[firsts[k] : firsts[k + 1]]
        expected = seeded(20, 24).double()[row] + SCALES[k] * x[row] @ own.T @ own
        torch.testing.assert_close(y[row], expected, rtol=1e-12, atol=1e-6)


def reference_add(y, h, b, segments):
    reference.add_(y, h, b, *segments.parts)
    return y


@pytest.mark.parametrize("rows, features, ranks", [(1, 7, (2,)), (9, 150, RANKS), (70, 33, (3, 70))])
@pytest.mark.parametrize("dtype", TYPES)
def test_on_a_gpu_the_products_are_the_references(rows, features, ranks, dtype):
    kernels = triton_kernels("segmented_low_rank")
    x, factors, segments = problem(rows, features, dtype, ranks)
    h, y = hidden(segments, dtype), seeded(rows, features).to(dtype)
    wide = (x.double(), factors.double(), *segments.parts, segments.rank)
    close = {"rtol": UNITS[dtype], "atol": UNITS[dtype] * features**0.5 * 4}
    torch.testing.assert_close(
        kernels.project(x, factors, *segments.parts, segments.rank).double(), reference.project(*wide), **close
    )
    torch.testing.assert_close(
        kernels.outer(h, x, *segments.parts, segments.total_rank).double(),
        reference.outer(h.double(), x.double(), *segments.parts, segments.total_rank),
        **close,
    )
    expected = reference_add(y.double(), h.double(), factors.double(), segments)
    kernels.add_(y, h, factors, *segments.parts)
    torch.testing.assert_close(y.double(), expected, **close)


def test_on_a_gpu_rows_without_an_adapter_and_what_lies_between_rows_stay_as_they_are():
    kernels = triton_kernels("segmented_low_rank")
    _, factors, segments = problem(9, 40, torch.float32)
    spread = torch.full((9, 48), 7.0)
    kernels.add_(spread[:, :40], hidden(segments, torch.float32) + 1, factors, *segments.parts)
    without = [row for row in range(9) if row not in segments.parts.order.tolist()]
    assert without
    assert spread[without].eq(7).all()
    assert spread[:, 40:].eq(7).all()
    assert not spread[segments.parts.order.long(), :40].eq(7).any()


def test_on_a_gpu_strided_rows_give_the_same():
    kernels = triton_kernels("segmented_low_rank")
    x, factors, segments = problem(9, 40, torch.float32)
    h = hidden(segments, torch.float32)
    other = seeded(40, 9).T
    for values in (other, torch.cat([x, x], 1)[:, :40]):
        found = kernels.project(values, factors, *segments.parts, segments.rank)
        torch.testing.assert_close(found, reference.project(values, factors, *segments.parts, segments.rank))
        found = kernels.outer(h, values, *segments.parts, segments.total_rank)
        torch.testing.assert_close(found, reference.outer(h, values, *segments.parts, segments.total_rank))


def test_on_a_gpu_an_adapter_that_is_not_finite_spoils_no_rows_of_others():
    kernels = triton_kernels("segmented_low_rank")
    x, factors, segments = problem(9, 40, torch.float32)
    factors[:3] = torch.inf
    h = kernels.project(x, factors, *segments.parts, segments.rank)
    y = torch.zeros_like(x)
    kernels.add_(y, h, factors, *segments.parts)
    first = segments.parts.order[: segments.parts.bounds[1]].tolist()
    assert [row for row in range(9) if not y[row].isfinite().all()] == sorted(first)


def test_an_adapted_layer_of_segments_is_that_of_updates_with_rows_of_their_own():
    x, adapters = seeded(20, 24).requires_grad_(), torch.arange(20) * 7 % 4
    pairs = [(seeded(rank, 24).requires_grad_(), seeded(12, rank).requires_grad_()) for rank in RANKS if rank]
    numbers = [k for k, rank in enumerate(RANKS) if rank]
    apart = [
        ops.LowRank(a, b, SCALES[k], rows=(adapters == k).nonzero()[:, 0])
        for k, (a, b) in zip(numbers, pairs, strict=True)
    ]
    a, b = torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs], 1)
    together = ops.LowRank(a, b, 1.0, segments=Segments.of(adapters, RANKS, SCALES))
    leaves, frozen = [x, *(factor for pair in pairs for factor in pair)], ops.DenseProduct(seeded(12, 24))
    expected, found = (ops.adapted_linear(x, frozen, None, updates) for updates in (apart, [together]))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)
    wanted, got = (torch.autograd.grad(y.square().sum(), leaves) for y in (expected, found))
    for mine, other in zip(got, wanted, strict=True):
        # f32 sums of values up to some thousands
        torch.testing.assert_close(mine, other, atol=0.05, rtol=1e-4)


def test_dropout_falls_on_segments_as_on_a_plain_update():
    x, a, b = seeded(6, 24).requires_grad_(), seeded(4, 24).requires_grad_(), seeded(12, 4).requires_grad_()
    alone = Segments.of(torch.zeros(6, dtype=torch.long), [4], [0.5])
    made = []
    for update in (ops.LowRank(a, b, 0.5, 0.5), ops.LowRank(a, b, 1.0, 0.5, segments=alone)):
        torch.manual_seed(1)
        y = ops.adapted_linear(x, ops.DenseProduct(seeded(12, 24)), None, [update])
        made.append([y, *torch.autograd.grad(y.square().sum(), [x, a, b])])
    for mine, other in zip(*made, strict=True):
        torch.testing.assert_close(mine, other, atol=0.01, rtol=1e-4)


def test_few_rows_an_adapter_take_small_tiles_and_many_large_ones():
    few = Segments.of(torch.arange(32) % 16, [8] * 16, [1.0] * 16).parts
    assert (few.tile_rows, len(few.tiles)) == (16, 16)
    many = Segments.of(torch.arange(1000) % 4, [8] * 4, [1.0] * 4).parts
    assert (many.tile_rows, len(many.tiles)) == (64, 16)


def test_numbers_of_adapters_that_are_not_there_are_refused():
    with pytest.raises(FormatError, match="adapters 0 to 2 beside 2 ranks"):
        Segments.of(torch.tensor([0, 2]), [4, 4], [1.0, 1.0])


def test_the_schemas_and_fakes_tell_the_truth():
    library, checks = torch.ops.lorasmith, ("test_schema", "test_faketensor")
    x, factors, segments = problem(9, 40, torch.float32)
    h = hidden(segments, torch.float32)
    torch.library.opcheck(
        library.segmented_project.default, (x, factors, *segments.parts, segments.rank), test_utils=checks
    )
    torch.library.opcheck(library.segmented_add_.default, (x, h, factors, *segments.parts), test_utils=checks)
    torch.library.opcheck(
        library.segmented_outer.default, (h, x, *segments.parts, segments.total_rank), test_utils=checks
    )
