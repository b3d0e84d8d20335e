"""The segmented thin products in plain PyTorch, an adapter at a time: the specification, on any device."""

from collections.abc import Iterator

import torch
from torch import Tensor

from lorasmith.ops.library import implement_reference


def project(
    x: Tensor,
    a: Tensor,
    order: Tensor,
    bounds: Tensor,
    ranks: Tensor,
    scales: Tensor,
    tiles: Tensor,
    tile_rows: int,
    rank: int,
) -> Tensor:
    """h [n, R]; see schema.py."""
    h_nR = a.new_zeros(order.shape[0], rank)
    for k, places, factors in _each(bounds, ranks):
        own_nF, a_rF = x[order[places].long()].to(a.dtype), a[factors]
        h_nR[places, : len(a_rF)] = (own_nF @ a_rF.T) * scales[k].to(a.dtype)
    return h_nR


def add_(
    y: Tensor,
    h: Tensor,
    b: Tensor,
    order: Tensor,
    bounds: Tensor,
    ranks: Tensor,
    scales: Tensor,
    tiles: Tensor,
    tile_rows: int,
) -> None:
    """Add to y [N, F]; see schema.py."""
    for _, places, factors in _each(bounds, ranks):
        rows, b_rF = order[places].long(), b[factors]
        y[rows] = y[rows].to(h.dtype).addmm_(h[places, : len(b_rF)], b_rF).to(y.dtype)


def outer(
    h: Tensor,
    x: Tensor,
    order: Tensor,
    bounds: Tensor,
    ranks: Tensor,
    scales: Tensor,
    tiles: Tensor,
    tile_rows: int,
    total_rank: int,
) -> Tensor:
    """[S, F]; see schema.py."""
    out_SF = h.new_zeros(total_rank, x.shape[1])
    for _, places, factors in _each(bounds, ranks):
        h_nr = h[places, : factors.stop - factors.start]
        out_SF[factors] = h_nr.T @ x[order[places].long()].to(h.dtype)
    return out_SF


def _each(bounds: Tensor, ranks: Tensor) -> Iterator[tuple[int, slice, slice]]:
    """Each adapter's number, places in order, and rows of the stack."""
    places, factors = torch.stack([bounds, ranks]).tolist()
    for k in range(len(places) - 1):
        yield k, slice(places[k], places[k + 1]), slice(factors[k], factors[k + 1])


implement_reference("segmented_project", project)
implement_reference("segmented_add_", add_)
implement_reference("segmented_outer", outer)
