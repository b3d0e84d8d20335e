"""The thin products of ops/low_rank where rows have factors of their own: several adapters in one batch.

The adapters' factors stand one behind the other, of any ranks. A row meets its own alone, so that work and memory grow
with rows and not with adapters, and what is not finite stays with its rows. Called inside autograd steps; no gradient.
Source: Punica's segmented gather, arXiv 2310.18547, section 4.
Axes: N rows, n of them with an adapter, F features, P adapters, R the largest rank, S the sum of ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from lorasmith.errors import FormatError
from lorasmith.ops.library import define, implement_fake

_SEGMENTS = "Tensor order, Tensor bounds, Tensor ranks, Tensor scales, Tensor tiles, int tile_rows"
define("segmented_project", f"(Tensor x, Tensor a, {_SEGMENTS}, int rank) -> Tensor")
define("segmented_add_", f"(Tensor(a!) y, Tensor h, Tensor b, {_SEGMENTS}) -> ()")
define("segmented_outer", f"(Tensor h, Tensor x, {_SEGMENTS}, int total_rank) -> Tensor")

FEW_ROWS, MANY_ROWS = 16, 64
"""Rows of a tile: the fewest that matrix instructions take, and enough to read a factor seldom."""


class Parts(NamedTuple):
    """What the ops are given of segments: which rows belong to which adapter, and where its factors are.

    order int32 [n] are the numbers of the rows, sorted by adapter; bounds int32 [P + 1] where each adapter's begin in
    order; ranks int32 [P + 1] where its factors begin in the stack; scales f32 [P] multiply h. Tiles int32 [T, 2] cover
    order: an adapter, and the place of the first of up to tile_rows rows.
    """

    order: Tensor
    bounds: Tensor
    ranks: Tensor
    scales: Tensor
    tiles: Tensor
    tile_rows: int


@dataclass(frozen=True)
class Segments:
    """Rows and the factors of their adapters; rank is the largest R, total_rank the sum S."""

    parts: Parts
    rank: int
    total_rank: int

    @classmethod
    def of(
        cls, adapters: Tensor, ranks: Sequence[int], scales: Sequence[float], device: torch.device | str = "cpu"
    ) -> "Segments":
        """Segments of rows on device, from the adapter of each row, int64 [N] on the CPU; one of rank 0 is none.

        Raises FormatError for an adapter that is not one of those that ranks and scales are of.
        """
        least, most = (int(end) for end in adapters.aminmax())
        if not 0 <= least <= most < len(ranks) == len(scales):
            raise FormatError(
                f"rows of adapters {least} to {most} beside {len(ranks)} ranks and {len(scales)} scales; "
                "give each adapter one of both, and number them from 0"
            )
        acting = torch.tensor([rank > 0 for rank in ranks])[adapters]
        order = adapters.argsort(stable=True)
        order = order[acting[order]]
        counts = torch.bincount(adapters[acting], minlength=len(ranks)).tolist()
        bounds = [0, *accumulate(counts)]
        busy = sum(count > 0 for count in counts)
        tile_rows = FEW_ROWS if len(order) <= 2 * FEW_ROWS * busy else MANY_ROWS
        tiles = [(k, first) for k in range(len(ranks)) for first in range(bounds[k], bounds[k + 1], tile_rows)]

        def numbers(values: Sequence[int] | Sequence[tuple[int, int]]) -> Tensor:
            return torch.tensor(values, dtype=torch.int32).to(device)

        parts = Parts(
            order.to(torch.int32).to(device),
            numbers(bounds),
            numbers([0, *accumulate(ranks)]),
            torch.tensor(scales, dtype=torch.float32).to(device),
            numbers(tiles).view(-1, 2),
            tile_rows,
        )
        return cls(parts, max(ranks, default=0), sum(ranks))


def project(x: Tensor, a: Tensor, segments: Segments) -> Tensor:
    """s_k x A_k^T of the rows of x [N, F] in order, A [S, F] stacked: h [n, R] in A's type, 0 beyond ranks."""
    return torch.ops.lorasmith.segmented_project.default(x, a, *segments.parts, segments.rank)


def add_(y: Tensor, h: Tensor, b: Tensor, segments: Segments) -> Tensor:
    """y [N, F] with h B_k added to each row in place, h [n, R] in order, B [S, F] stacked; rounded once to y's type."""
    torch.ops.lorasmith.segmented_add_.default(y, h, b, *segments.parts)
    return y


def outer(h: Tensor, x: Tensor, segments: Segments) -> Tensor:
    """h_k^T x_k of each adapter's rows, h [n, R] in order, x [N, F]: [S, F] stacked, in h's type."""
    return torch.ops.lorasmith.segmented_outer.default(h, x, *segments.parts, segments.total_rank)


def _fake_project(x: Tensor, a: Tensor, order: Tensor, *others: object) -> Tensor:
    rank = others[-1]
    assert isinstance(rank, int)
    return a.new_empty(order.shape[0], rank)


def _fake_outer(h: Tensor, x: Tensor, *others: object) -> Tensor:
    total_rank = others[-1]
    assert isinstance(total_rank, int)
    return h.new_empty(total_rank, x.shape[1])


implement_fake("segmented_project", _fake_project)
implement_fake("segmented_add_", lambda y, h, b, *others: None)
implement_fake("segmented_outer", _fake_outer)
