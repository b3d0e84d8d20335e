"""The segmented thin products on a GPU: a launch each, whatever the number of adapters; sums in f32, in a fixed order.

A program takes a tile of one adapter's rows, gathered by their numbers, so nothing is sorted or copied in memory. Few
rows, as in generating, give few programs: then the features of a projection (the rows of an outer product) are cut into
parts that are summed afterwards. Operands of one type, else the reference.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lorasmith.ops.gpu import FLOATS, current, serve, unbroken
from lorasmith.ops.segmented_low_rank import reference
from lorasmith.ops.tiles import add_product, loop_end, rounded

RANKS = 64
"""Ranks of a tile at most."""
PROGRAMS = 256
"""Programs that keep a GPU's memory busy; an H200 has 132 multiprocessors."""


@triton.jit
def _tile(tiles, order, bounds, ranks, ROWS: tl.constexpr):
    """Of this program's tile: adapter, places in order, rows, which of them are there, its first factor, its rank."""
    adapter = tl.load(tiles + 2 * tl.program_id(0))
    place = tl.load(tiles + 2 * tl.program_id(0) + 1) + tl.arange(0, ROWS)
    mine = place < tl.load(bounds + adapter + 1)
    row = tl.load(order + place, mask=mine, other=0).to(tl.int64)
    first = tl.load(ranks + adapter)
    return adapter, place.to(tl.int64), row, mine, first.to(tl.int64), tl.load(ranks + adapter + 1) - first


@triton.jit
def _project(
    x,
    a,
    order,
    bounds,
    ranks,
    scales,
    tiles,
    out,
    x_stride,
    part_stride,
    part_features,
    FEATURES: tl.constexpr,
    RANK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RANKS: tl.constexpr,
):
    adapter, place, row, mine, first, rank = _tile(tiles, order, bounds, ranks, ROWS)
    r = tl.program_id(1) * RANKS + tl.arange(0, RANKS)
    part = tl.program_id(2)
    # an adapter of a smaller rank reads nothing for the ranks that it lacks
    mine = mine & (tl.program_id(1) * RANKS < rank)
    h = tl.zeros([ROWS, RANKS], tl.float32)
    for start in range(0, loop_end(part_features), COLUMNS):
        column = part * part_features + start + tl.arange(0, COLUMNS)
        inside = column < FEATURES
        values = tl.load(x + row[:, None] * x_stride + column[None, :], mask=mine[:, None] & inside[None, :], other=0.0)
        factor = a + (first + r)[None, :] * FEATURES + column[:, None]
        factors = tl.load(factor, mask=(r < rank)[None, :] & inside[:, None], other=0.0)
        h = add_product(h, values, factors)
    h = rounded(h * tl.load(scales + adapter), out.dtype.element_ty)
    # not by mine: ranks that an adapter lacks are 0
    kept = (place < tl.load(bounds + adapter + 1))[:, None] & (r < RANK)[None, :]
    tl.store(out + part.to(tl.int64) * part_stride + place[:, None] * RANK + r[None, :], h, mask=kept)


@triton.jit
def _add(
    y,
    h,
    b,
    order,
    bounds,
    ranks,
    tiles,
    y_stride,
    FEATURES: tl.constexpr,
    RANK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RANKS: tl.constexpr,
):
    _, place, row, mine, first, rank = _tile(tiles, order, bounds, ranks, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < FEATURES
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, RANK, RANKS):
        r = start + tl.arange(0, RANKS)
        known = r < rank
        hidden = tl.load(h + place[:, None] * RANK + r[None, :], mask=mine[:, None] & known[None, :], other=0.0)
        factor = b + (first + r)[:, None] * FEATURES + column[None, :]
        factors = tl.load(factor, mask=known[:, None] & inside[None, :], other=0.0)
        total = add_product(total, hidden, factors)
    spot, there = y + row[:, None] * y_stride + column[None, :], mine[:, None] & inside[None, :]
    total += tl.load(spot, mask=there, other=0.0).to(tl.float32)
    tl.store(spot, rounded(total, y.dtype.element_ty), mask=there)


@triton.jit
def _outer(
    h,
    x,
    order,
    bounds,
    ranks,
    out,
    x_stride,
    part_stride,
    parts,
    FEATURES: tl.constexpr,
    RANK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RANKS: tl.constexpr,
):
    adapter = tl.program_id(0) // parts
    part = tl.program_id(0) % parts
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    r = tl.program_id(2) * RANKS + tl.arange(0, RANKS)
    inside = column < FEATURES
    begin, end = tl.load(bounds + adapter), tl.load(bounds + adapter + 1)
    first = tl.load(ranks + adapter)
    known = r < tl.load(ranks + adapter + 1) - first
    total = tl.zeros([RANKS, COLUMNS], tl.float32)
    for step in range(0, loop_end(tl.cdiv(end - begin, ROWS * parts))):
        place = begin + (step * parts + part) * ROWS + tl.arange(0, ROWS)
        mine = place < end
        row = tl.load(order + place, mask=mine, other=0).to(tl.int64)
        hidden = h + place.to(tl.int64)[None, :] * RANK + r[:, None]
        hiddens = tl.load(hidden, mask=known[:, None] & mine[None, :], other=0.0)
        values = tl.load(x + row[:, None] * x_stride + column[None, :], mask=mine[:, None] & inside[None, :], other=0.0)
        total = add_product(total, hiddens, values)
    spot = out + part.to(tl.int64) * part_stride + (first + r).to(tl.int64)[:, None] * FEATURES + column[None, :]
    tl.store(spot, rounded(total, out.dtype.element_ty), mask=known[:, None] & inside[None, :])


def project(x: Tensor, a: Tensor, *parts_and_rank: Any) -> Tensor:
    """h [n, R]; see schema.py."""
    *segments, rank = parts_and_rank
    order, bounds, ranks, scales, tiles, tile_rows = segments
    if not _served(x, a) or 0 in (order.shape[0], rank, x.shape[1]):
        return reference.project(x, a, *segments, rank)
    values, factors, features = unbroken(x), a.contiguous(), x.shape[1]
    sizes = _sizes(rank, 128 if tile_rows < 64 else 64) if _narrow(x) else _sizes(rank, 32)
    chunks = triton.cdiv(rank, sizes["RANKS"])
    steps = triton.cdiv(features, sizes["COLUMNS"])
    part_steps = triton.cdiv(steps, min(steps, triton.cdiv(PROGRAMS, len(tiles) * chunks)))
    parts = triton.cdiv(steps, part_steps)
    out = _parts(parts, (order.shape[0], rank), a)
    with current(x):
        _project[(len(tiles), chunks, parts)](
            *(values, factors, order, bounds, ranks, scales, tiles, out, values.stride(0), order.shape[0] * rank),
            # how the work is cut depends on the batch, and nothing is compiled anew for that
            part_steps * sizes["COLUMNS"],
            **{"FEATURES": features, "RANK": rank, "ROWS": tile_rows},
            **sizes,
            num_stages=3 if _narrow(x) else 2,
        )
    return _summed(out, a.dtype)


def add_(y: Tensor, h: Tensor, b: Tensor, *parts: Any) -> None:
    """Add to y [N, F]; see schema.py."""
    order, bounds, ranks, _, tiles, tile_rows = parts
    if not _served(y, h, b) or 0 in (order.shape[0], h.shape[1], y.shape[1]) or y.stride(1) != 1:
        reference.add_(y, h, b, *parts)
        return
    features, rank = y.shape[1], h.shape[1]
    sizes = _sizes(rank, 128) if _narrow(y) else _sizes(16, 64)
    with current(y):
        _add[(len(tiles), triton.cdiv(features, sizes["COLUMNS"]))](
            *(y, h.contiguous(), b.contiguous(), order, bounds, ranks, tiles, y.stride(0)),
            **{"FEATURES": features, "RANK": rank, "ROWS": tile_rows},
            **sizes,
            num_stages=1,
        )


def outer(h: Tensor, x: Tensor, *parts_and_total: Any) -> Tensor:
    """[S, F]; see schema.py."""
    *segments, total_rank = parts_and_total
    order, bounds, ranks, _, tiles, tile_rows = segments
    if not _served(h, x) or 0 in (order.shape[0], total_rank, x.shape[1]):
        return reference.outer(h, x, *segments, total_rank)
    values, features, rank, adapters = unbroken(x), x.shape[1], h.shape[1], len(bounds) - 1
    sizes = _sizes(rank, 128 if _narrow(x) else 64)
    grid = (triton.cdiv(features, sizes["COLUMNS"]), triton.cdiv(rank, sizes["RANKS"]))
    most = max(1, len(tiles) // adapters)
    parts = min(most, triton.cdiv(PROGRAMS, adapters * grid[0] * grid[1]))
    out = _parts(parts, (total_rank, features), h)
    with current(x):
        _outer[(adapters * parts, *grid)](
            *(h.contiguous(), values, order, bounds, ranks, out, values.stride(0), total_rank * features, parts),
            **{"FEATURES": features, "RANK": rank, "ROWS": tile_rows},
            **sizes,
            num_stages=2,
        )
    return _summed(out, h.dtype)


def _served(*operands: Tensor) -> bool:
    return operands[0].dtype in FLOATS and len({operand.dtype for operand in operands}) == 1


def _narrow(values: Tensor) -> bool:
    """Whether matrix instructions multiply values; f32 goes one by one, and large tiles of it would spill registers."""
    return values.dtype != torch.float32


def _sizes(rank: int, columns: int) -> dict[str, int]:
    # matrix instructions take 16 ranks or more
    return {"COLUMNS": columns, "RANKS": min(RANKS, max(16, triton.next_power_of_2(rank)))}


def _parts(parts: int, shape: tuple[int, int], like: Tensor) -> Tensor:
    """Room for parts of a result, which are f32 where they are several."""
    return torch.empty(parts, *shape, dtype=like.dtype if parts == 1 else torch.float32, device=like.device)


def _summed(parts: Tensor, dtype: torch.dtype) -> Tensor:
    return parts[0] if len(parts) == 1 else parts.sum(0).to(dtype)


serve("segmented_project", project)
serve("segmented_add_", add_)
serve("segmented_outer", outer)
