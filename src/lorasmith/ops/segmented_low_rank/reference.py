"""The segmented thin products in plain PyTorch, an adapter at a time: the specification, on any device."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lorasmith.ops.library import implement_reference
from lorasmith.ops.segmented_low_rank.schema import Parts


def project(x: Tensor, a: Tensor, *parts_and_rank: Any) -> Tensor:
    """h [n, R]; see schema.py."""
    *parts, rank = parts_and_rank
    segments = Parts(*parts)
    h_nR = a.new_zeros(segments.order.shape[0], rank)
    for k, places, factors in _each(segments):
        own_nF, a_rF = x[segments.order[places].long()].to(a.dtype), a[factors]
        h_nR[places, : len(a_rF)] = (own_nF @ a_rF.T) * segments.scales[k].to(a.dtype)
    return h_nR


def add_(y: Tensor, h: Tensor, b: Tensor, *parts: Any) -> None:
    """Add to y [N, F]; see schema.py."""
    segments = Parts(*parts)
    for _, places, factors in _each(segments):
        rows, b_rF = segments.order[places].long(), b[factors]
        y[rows] = y[rows].to(h.dtype).addmm_(h[places, : len(b_rF)], b_rF).to(y.dtype)


def outer(h: Tensor, x: Tensor, *parts_and_total: Any) -> Tensor:
    """[S, F]; see schema.py."""
    *parts, total_rank = parts_and_total
    segments = Parts(*parts)
    out_SF = h.new_zeros(total_rank, x.shape[1])
    for _, places, factors in _each(segments):
        h_nr = h[places, : factors.stop - factors.start]
        out_SF[factors] = h_nr.T @ x[segments.order[places].long()].to(h.dtype)
    return out_SF


def _each(segments: Parts) -> Iterator[tuple[int, slice, slice]]:
    """Each adapter's number, places in order, and rows of the stack."""
    places, factors = torch.stack([segments.bounds, segments.ranks]).tolist()
    for k in range(len(places) - 1):
        yield k, slice(places[k], places[k + 1]), slice(factors[k], factors[k + 1])


implement_reference("segmented_project", project)
implement_reference("segmented_add_", add_)
implement_reference("segmented_outer", outer)
