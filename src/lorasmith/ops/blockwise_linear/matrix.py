"""Triton kernels for more rows than one: x W^T + bias + h B^T and g W + u A, W dequantized tile by tile inside.

W is read as codes and never stored dense. Each tile of rows of x decodes W anew, so beyond some hundreds of rows a
buffer and the device's own matmul are faster; choosing is left to the caller. As in the reference level x scale is
rounded to the type of x, and sums are f32; the update joins them before they are rounded. Where the output has too few
tiles to fill the GPU, the columns of W are split between programs, whose sums a second kernel adds in a fixed order:
the same call gives the same bits. The tile is chosen by measuring (tiling.py), once for a kind of call.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lorasmith.ops.blockwise.triton import scale_of
from lorasmith.ops.blockwise_linear.packed import PackedWeight, Update
from lorasmith.ops.blockwise_linear.tiling import BACKWARD, FORWARD, backward_tiles, forward_tiles, splits_of
from lorasmith.ops.blockwise_linear.vector import level_of
from lorasmith.ops.choice import size_class
from lorasmith.ops.gpu import current, tuned
from lorasmith.ops.tiles import add_product, rounded

FINISHED = {"ROWS": 16, "OUTS": 64}
"""The tile of a program that adds the parts of split sums."""


@triton.jit
def _decoded(
    packed,
    scales,
    codebook,
    nested_scales,
    nested_offset,
    nested_codebook,
    o,
    start,
    out_features: tl.constexpr,
    in_features: tl.constexpr,
    dtype: tl.constexpr,
    NESTED: tl.constexpr,
    BLOCKSIZE: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """W[o, start : start + WIDTH] in dtype, zeros outside; start is a multiple of WIDTH."""
    RUN: tl.constexpr = min(BLOCKSIZE, WIDTH)
    run = start // RUN + tl.arange(0, WIDTH // RUN)
    known = (o < out_features)[:, None] & (run < in_features // RUN)[None, :]
    first = o.to(tl.int64)[:, None] * (in_features // RUN) + run[None, :]
    block = first // (BLOCKSIZE // RUN)
    scale = scale_of(block, known, scales, nested_scales, nested_offset, nested_codebook, NESTED)
    byte = first[:, :, None] * (RUN // 2) + tl.arange(0, RUN // 2)[None, None, :]
    both = tl.load(packed + byte, mask=known[:, :, None], other=0).to(tl.int32)
    level = level_of(tl.load(codebook + tl.arange(0, 16)), tl.interleave(both >> 4, both & 15))
    values = tl.where(known[:, :, None], level * scale[:, :, None], 0.0)
    return rounded(tl.reshape(values, (o.shape[0], WIDTH)), dtype)


@triton.jit
def _finish(y, bias, h, b, out, n, o, rows, out_features: tl.constexpr, rank: tl.constexpr):
    """Store the transpose of y [o, n] + bias + B h^T; B is rounded to h's type."""
    inside_n, inside_o = (n < rows)[None, :], (o < out_features)[:, None]
    if rank > 0:
        for start in range(0, rank, 16):
            r = start + tl.arange(0, 16)
            low = tl.load(
                h + n.to(tl.int64)[None, :] * rank + r[:, None], mask=inside_n & (r < rank)[:, None], other=0.0
            )
            high = tl.load(b + o[:, None] * rank + r[None, :], mask=inside_o & (r < rank)[None, :], other=0.0)
            y = add_product(y, high.to(low.dtype), low)
    if bias is not None:
        y += tl.load(bias + o, mask=o < out_features, other=0.0).to(tl.float32)[:, None]
    place = n.to(tl.int64)[None, :] * out_features + o[:, None]
    tl.store(out + place, rounded(y, out.dtype.element_ty), mask=inside_n & inside_o)


@triton.jit
def _forward(
    x,
    bias,
    packed,
    scales,
    codebook,
    nested_scales,
    nested_offset,
    nested_codebook,
    h,
    b,
    out,
    rows,
    row_class,
    out_features: tl.constexpr,
    in_features: tl.constexpr,
    rank: tl.constexpr,
    NESTED: tl.constexpr,
    BLOCKSIZE: tl.constexpr,
    SPLITS: tl.constexpr,
    ROWS: tl.constexpr,
    OUTS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    o = tl.program_id(0) * OUTS + tl.arange(0, OUTS)
    n = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    split = tl.program_id(2)
    steps: tl.constexpr = tl.cdiv(tl.cdiv(in_features, DEPTH), SPLITS)
    # transposed: tensor cores take 64 or 16 rows of the first operand, and W has them
    sums = tl.zeros((OUTS, ROWS), tl.float32)
    for step in range(steps):
        start = (split * steps + step) * DEPTH
        i = start + tl.arange(0, DEPTH)
        inside = (n < rows)[None, :] & (i < in_features)[:, None]
        values = tl.load(x + n.to(tl.int64)[None, :] * in_features + i[:, None], mask=inside, other=0.0)
        tables = (scales, codebook, nested_scales, nested_offset, nested_codebook)
        sizes = (out_features, in_features)
        weight = _decoded(packed, *tables, o, start, *sizes, values.dtype, NESTED, BLOCKSIZE, DEPTH)
        sums = add_product(sums, weight, values)
    if SPLITS > 1:
        place = (split * rows + n).to(tl.int64)[None, :] * out_features + o[:, None]
        tl.store(out + place, sums, mask=(n < rows)[None, :] & (o < out_features)[:, None])
    else:
        _finish(sums, bias, h, b, out, n, o, rows, out_features, rank)


@triton.jit
def _add_parts(
    parts,
    bias,
    h,
    b,
    out,
    rows,
    out_features: tl.constexpr,
    rank: tl.constexpr,
    SPLITS: tl.constexpr,
    ROWS: tl.constexpr,
    OUTS: tl.constexpr,
):
    o = tl.program_id(0) * OUTS + tl.arange(0, OUTS)
    n = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    y = tl.zeros((OUTS, ROWS), tl.float32)
    for split in tl.static_range(SPLITS):
        place = (split * rows + n).to(tl.int64)[None, :] * out_features + o[:, None]
        y += tl.load(parts + place, mask=(n < rows)[None, :] & (o < out_features)[:, None], other=0.0)
    _finish(y, bias, h, b, out, n, o, rows, out_features, rank)


@triton.jit
def _backward(
    grad,
    packed,
    scales,
    codebook,
    nested_scales,
    nested_offset,
    nested_codebook,
    u,
    a,
    out,
    rows,
    row_class,
    out_features: tl.constexpr,
    in_features: tl.constexpr,
    rank: tl.constexpr,
    NESTED: tl.constexpr,
    BLOCKSIZE: tl.constexpr,
    ROWS: tl.constexpr,
    OUTS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """OUTS columns of the result; DEPTH rows of W at a time."""
    first = tl.program_id(0) * OUTS
    i = first + tl.arange(0, OUTS)
    n = (tl.program_id(1) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    inside_n, inside_i = (n < rows)[:, None], (i < in_features)[None, :]
    sums = tl.zeros((ROWS, OUTS), tl.float32)
    for start in range(0, out_features, DEPTH):
        o = start + tl.arange(0, DEPTH)
        inside = inside_n & (o < out_features)[None, :]
        values = tl.load(grad + n[:, None] * out_features + o[None, :], mask=inside, other=0.0)
        tables = (scales, codebook, nested_scales, nested_offset, nested_codebook)
        sizes = (out_features, in_features)
        weight = _decoded(packed, *tables, o, first, *sizes, values.dtype, NESTED, BLOCKSIZE, OUTS)
        sums = add_product(sums, values, weight)
    if rank > 0:
        for start in range(0, rank, 16):
            r = start + tl.arange(0, 16)
            low = tl.load(u + n[:, None] * rank + r[None, :], mask=inside_n & (r < rank)[None, :], other=0.0)
            high = tl.load(a + r[:, None] * in_features + i[None, :], mask=inside_i & (r < rank)[:, None], other=0.0)
            sums = add_product(sums, low, high.to(low.dtype))
    place = n[:, None] * in_features + i[None, :]
    tl.store(out + place, rounded(sums, out.dtype.element_ty), mask=inside_n & inside_i)


_KIND = ["row_class", "out_features", "in_features", "NESTED"]
_FORWARD = {name: tuned([tile.config for tile in tiles], _KIND)(_forward) for name, tiles in FORWARD.items()}
_BACKWARD = {name: tuned([tile.config for tile in tiles], _KIND)(_backward) for name, tiles in BACKWARD.items()}


def forward(x: Tensor, bias: Tensor | None, weight: PackedWeight, update: Update | None) -> Tensor:
    """x W^T + bias + h B^T of x [N, I]: y [N, O] in x's type."""
    rows, out_features = x.shape[0], weight.out_features
    name = forward_tiles(rows, x.dtype)
    splits = splits_of(rows, out_features, weight.in_features, FORWARD[name][0], x.device)
    y = torch.empty((rows, out_features), dtype=x.dtype, device=x.device)
    parts = y if splits == 1 else torch.empty((splits, rows, out_features), dtype=torch.float32, device=x.device)
    h, b, rank = (None, None, 0) if update is None else (update.h, update.b, update.b.shape[1])
    sizes = (rows, size_class(rows), out_features, weight.in_features, rank)
    with current(x):
        _FORWARD[name][_grid(out_features, rows, splits)](
            x, bias, weight.packed, *weight.tables, h, b, parts, *sizes, **_storage(weight), SPLITS=splits
        )
        if splits > 1:
            grid = _grid(out_features, rows)(FINISHED)
            _add_parts[grid](parts, bias, h, b, y, rows, out_features, rank, SPLITS=splits, **FINISHED)
    return y


def backward(grad: Tensor, weight: PackedWeight, u: Tensor | None = None, a: Tensor | None = None) -> Tensor:
    """g W + u A of grad [N, O], u [N, R] and A [R, I]: [N, I] in grad's type."""
    rows = grad.shape[0]
    out = torch.empty((rows, weight.in_features), dtype=grad.dtype, device=grad.device)
    rank = 0 if a is None else a.shape[0]
    sizes = (rows, size_class(rows), weight.out_features, weight.in_features, rank)
    with current(grad):
        _BACKWARD[backward_tiles(rows, grad.dtype)][_grid(weight.in_features, rows)](
            grad, weight.packed, *weight.tables, u, a, out, *sizes, **_storage(weight)
        )
    return out


def _storage(weight: PackedWeight) -> dict[str, int]:
    return {"NESTED": weight.nested_blocksize, "BLOCKSIZE": weight.blocksize}


def _grid(columns: int, rows: int, splits: int = 1) -> Any:
    return lambda tile: (triton.cdiv(columns, tile["OUTS"]), triton.cdiv(rows, tile["ROWS"]), splits)
