"""Root mean square norms on a GPU, equal to reference.py within a rounding: a tile of whole rows at a time.

Forward reads x and writes y, backward reads x and grad and writes the gradient of x, each once. Where the weight
trains, a program takes several tiles one after the other and leaves one row of sums, which are added in a fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lorasmith.ops.gpu import FLOATS, current, serve
from lorasmith.ops.rms_norm import reference
from lorasmith.ops.tiles import rounded

WIDEST = 32768
"""Columns of the widest row that a program holds; wider ones go to the reference."""

PARTS = 512
"""The most programs that share the rows where the weight trains; the card's own number would make sums that differ."""

TILE = 2048
"""Elements of a tile of narrow rows."""


@triton.jit
def _factor(weight, column, WIDTH: tl.constexpr, PLUS_ONE: tl.constexpr):
    """What each column is multiplied by, f32 [1, D]."""
    factor = tl.load(weight + column[None, :], mask=(column < WIDTH)[None, :], other=0.0).to(tl.float32)
    if PLUS_ONE:
        return factor + 1.0
    else:
        return factor


@triton.jit
def _forward(
    x,
    weight,
    y,
    rms,
    rows,
    eps,
    WIDTH: tl.constexpr,
    PLUS_ONE: tl.constexpr,
    ROUNDS_FIRST: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    place = row[:, None] * WIDTH + column[None, :]
    known = (row < rows)[:, None] & (column < WIDTH)[None, :]
    values = tl.load(x + place, mask=known, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values, 1) / WIDTH + eps)
    normed = values * scale[:, None]
    if ROUNDS_FIRST:
        normed = rounded(normed, y.dtype.element_ty).to(tl.float32)
    out = normed * _factor(weight, column, WIDTH, PLUS_ONE)
    tl.store(y + place, rounded(out, y.dtype.element_ty), mask=known)
    tl.store(rms + row, scale, mask=row < rows)


@triton.jit
def _backward(
    grad,
    x,
    weight,
    rms,
    grad_x,
    sums,
    rows,
    WIDTH: tl.constexpr,
    PLUS_ONE: tl.constexpr,
    ROUNDS_FIRST: tl.constexpr,
    TRAINS: tl.constexpr,
    TILES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    column = tl.arange(0, COLUMNS)
    factor = _factor(weight, column, WIDTH, PLUS_ONE)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for tile in tl.range(TILES):
        row = (tl.program_id(0).to(tl.int64) * TILES + tile) * ROWS + tl.arange(0, ROWS)
        place = row[:, None] * WIDTH + column[None, :]
        known = (row < rows)[:, None] & (column < WIDTH)[None, :]
        values = tl.load(x + place, mask=known, other=0.0).to(tl.float32)
        upstream = tl.load(grad + place, mask=known, other=0.0).to(tl.float32)
        scale = tl.load(rms + row, mask=row < rows, other=0.0)[:, None]
        of_normed = upstream * factor
        if ROUNDS_FIRST:
            of_normed = rounded(of_normed, x.dtype.element_ty).to(tl.float32)
        share = scale * scale * (tl.sum(of_normed * values, 1) / WIDTH)[:, None]
        tl.store(grad_x + place, rounded(scale * (of_normed - values * share), x.dtype.element_ty), mask=known)
        if TRAINS:
            normed = values * scale
            if ROUNDS_FIRST:
                normed = rounded(normed, x.dtype.element_ty).to(tl.float32)
            total += upstream * normed
    if TRAINS:
        place = tl.program_id(0) * WIDTH + column
        if ROWS == 1:
            # not summed, which would send a whole row through shared memory
            tl.store(sums + place[None, :], total, mask=(column < WIDTH)[None, :])
        else:
            tl.store(sums + place, tl.sum(total, 0), mask=column < WIDTH)


def rms_norm(x: Tensor, weight: Tensor, eps: float, plus_one: bool, rounds_first: bool) -> tuple[Tensor, Tensor]:
    """y [N, D] and the factors f32 [N]; see schema.py."""
    if not _served(x):
        return reference.rms_norm(x, weight, eps, plus_one, rounds_first)
    x = x.contiguous()
    y, rms = torch.empty_like(x), torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
    rows, tile = rms.numel(), _tile(x)
    options = {"WIDTH": x.shape[-1], "PLUS_ONE": plus_one, "ROUNDS_FIRST": rounds_first}
    with current(x):
        _forward[(triton.cdiv(rows, tile["ROWS"]),)](x, weight.contiguous(), y, rms, rows, eps, **options, **tile)
    return y, rms


def rms_norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor, rms: Tensor, plus_one: bool, rounds_first: bool, weight_trains: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of x [N, D] and weight [D]; an empty one unless weight_trains."""
    if not _served(x):
        return reference.rms_norm_backward(grad, x, weight, rms, plus_one, rounds_first, weight_trains)
    x, width = x.contiguous(), x.shape[-1]
    grad_x, rows, tile = torch.empty_like(x), rms.numel(), _tile(x)
    # a power of two, so that few kernels are compiled
    tiles = triton.next_power_of_2(triton.cdiv(rows, PARTS * tile["ROWS"])) if weight_trains else 1
    programs = triton.cdiv(rows, tiles * tile["ROWS"])
    sums = torch.empty(programs if weight_trains else 0, width, dtype=torch.float32, device=x.device)
    parts = (grad.contiguous(), x, weight.contiguous(), rms.contiguous(), grad_x, sums, rows)
    options = {
        "WIDTH": width,
        "PLUS_ONE": plus_one,
        "ROUNDS_FIRST": rounds_first,
        "TRAINS": weight_trains,
        "TILES": tiles,
    }
    with current(x):
        _backward[(programs,)](*parts, **options, **tile)
    return grad_x, sums.sum(0).to(weight.dtype) if weight_trains else weight.new_empty(0)


def _served(x: Tensor) -> bool:
    return x.dtype in FLOATS and x.numel() > 0 and x.shape[-1] <= WIDEST


def _tile(x: Tensor) -> dict[str, int]:
    """A tile's sizes, and its warps: 16 elements a thread, so that each reads 32 bytes of 16-bit values at once."""
    columns = triton.next_power_of_2(x.shape[-1])
    rows = max(1, TILE // columns)
    return {"ROWS": rows, "COLUMNS": columns, "num_warps": min(32, max(1, rows * columns // 512))}


serve("rms_norm", rms_norm)
serve("rms_norm_backward", rms_norm_backward)
