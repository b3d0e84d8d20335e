"""Triton kernels for more rows than one: x W^T + bias + h B^T and g W, W dequantized tile by tile inside the product.

W is read as codes and never stored dense. Each tile of rows of x decodes W anew, so beyond some hundreds of rows a
buffer and the device's own matmul are faster; choosing is left to the caller. As in the reference level x scale is
rounded to the type of x, and sums are f32. Where the output has too few tiles to fill the GPU, the columns of W are
split between programs, whose sums a second kernel adds in a fixed order: the same call gives the same bits.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from lorasmith.ops.blockwise.triton import scale_of
from lorasmith.ops.blockwise_linear.packed import PackedWeight, Update
from lorasmith.ops.blockwise_linear.vector import level_of
from lorasmith.ops.gpu import current
from lorasmith.ops.tiles import add_product, rounded

MOST_SPLITS = 8
FINISHED = {"ROWS": 16, "OUTS": 64}
"""The tile of a program that adds the parts of split sums."""


@dataclass(frozen=True)
class Tile:
    """What a program computes: ROWS x OUTS outputs (of g W: x DEPTH columns), DEPTH products at a time."""

    rows: int
    outs: int
    depth: int
    warps: int

    def options(self) -> dict[str, int]:
        """As a launch takes them; two stages keep an f32 tile within 64 KiB of shared memory."""
        return {"ROWS": self.rows, "OUTS": self.outs, "DEPTH": self.depth, "num_warps": self.warps, "num_stages": 2}


def tile_for(rows: int, dtype: torch.dtype) -> Tile:
    """Few rows want programs that read much of W; many want each decoded tile of W to meet many rows."""
    if rows <= 32:
        return Tile(16 if rows <= 16 else 32, 64, 64, 4)
    return Tile(64, 64, 32, 4) if rows <= 64 or dtype == torch.float32 else Tile(128, 128, 64, 8)


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
    """Store y [n, o] + bias + h B^T."""
    inside_n, inside_o = n < rows, o < out_features
    if rank > 0:
        for start in range(0, rank, 16):
            r = start + tl.arange(0, 16)
            low = tl.load(h + n[:, None] * rank + r[None, :], mask=inside_n[:, None] & (r < rank)[None, :], other=0.0)
            high = tl.load(b + o[None, :] * rank + r[:, None], mask=inside_o[None, :] & (r < rank)[:, None], other=0.0)
            y = add_product(y, low, high.to(tl.float32))
    if bias is not None:
        y += tl.load(bias + o, mask=inside_o, other=0.0).to(tl.float32)[None, :]
    place = n.to(tl.int64)[:, None] * out_features + o[None, :]
    tl.store(out + place, rounded(y, out.dtype.element_ty), mask=inside_n[:, None] & inside_o[None, :])


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
        place = (split * rows + n).to(tl.int64)[:, None] * out_features + o[None, :]
        tl.store(out + place, tl.trans(sums), mask=(n < rows)[:, None] & (o < out_features)[None, :])
    else:
        _finish(tl.trans(sums), bias, h, b, out, n, o, rows, out_features, rank)


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
    y = tl.zeros((ROWS, OUTS), tl.float32)
    for split in tl.static_range(SPLITS):
        place = (split * rows + n).to(tl.int64)[:, None] * out_features + o[None, :]
        y += tl.load(parts + place, mask=(n < rows)[:, None] & (o < out_features)[None, :], other=0.0)
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
    out,
    rows,
    out_features: tl.constexpr,
    in_features: tl.constexpr,
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
    sums = tl.zeros((ROWS, OUTS), tl.float32)
    for start in range(0, out_features, DEPTH):
        o = start + tl.arange(0, DEPTH)
        inside = (n < rows)[:, None] & (o < out_features)[None, :]
        values = tl.load(grad + n[:, None] * out_features + o[None, :], mask=inside, other=0.0)
        tables = (scales, codebook, nested_scales, nested_offset, nested_codebook)
        sizes = (out_features, in_features)
        weight = _decoded(packed, *tables, o, first, *sizes, values.dtype, NESTED, BLOCKSIZE, OUTS)
        sums = add_product(sums, values, weight)
    inside = (n < rows)[:, None] & (i < in_features)[None, :]
    tl.store(out + n[:, None] * in_features + i[None, :], rounded(sums, out.dtype.element_ty), mask=inside)


def forward(x: Tensor, bias: Tensor | None, weight: PackedWeight, update: Update | None) -> Tensor:
    """x W^T + bias + h B^T of x [N, I]: y [N, O] in x's type."""
    rows, out_features = x.shape[0], weight.out_features
    tile = tile_for(rows, x.dtype)
    tiles = triton.cdiv(out_features, tile.outs) * triton.cdiv(rows, tile.rows)
    splits = _splits(tiles, triton.cdiv(weight.in_features, tile.depth), x.device)
    y = torch.empty((rows, out_features), dtype=x.dtype, device=x.device)
    parts = y if splits == 1 else torch.empty((splits, rows, out_features), dtype=torch.float32, device=x.device)
    h, b, rank = (None, None, 0) if update is None else (update.h, update.b, update.b.shape[1])
    stored = {"NESTED": weight.nested_blocksize, "BLOCKSIZE": weight.blocksize}
    sizes = (rows, out_features, weight.in_features, rank)
    with current(x):
        _forward[_grid(out_features, rows, tile.outs, tile.rows, splits)](
            x, bias, weight.packed, *weight.tables, h, b, parts, *sizes, **stored, SPLITS=splits, **tile.options()
        )
        if splits > 1:
            grid = _grid(out_features, rows, FINISHED["OUTS"], FINISHED["ROWS"])
            _add_parts[grid](parts, bias, h, b, y, rows, out_features, rank, SPLITS=splits, **FINISHED)
    return y


def backward(grad: Tensor, weight: PackedWeight) -> Tensor:
    """g W of grad [N, O]: [N, I] in its type."""
    rows = grad.shape[0]
    tile = tile_for(rows, grad.dtype)
    out = torch.empty((rows, weight.in_features), dtype=grad.dtype, device=grad.device)
    sizes = (rows, weight.out_features, weight.in_features)
    with current(grad):
        _backward[_grid(weight.in_features, rows, tile.outs, tile.rows)](
            grad,
            weight.packed,
            *weight.tables,
            out,
            *sizes,
            NESTED=weight.nested_blocksize,
            BLOCKSIZE=weight.blocksize,
            **tile.options(),
        )
    return out


def _grid(columns: int, rows: int, width: int, height: int, splits: int = 1) -> tuple[int, int, int]:
    return triton.cdiv(columns, width), triton.cdiv(rows, height), splits


def _splits(tiles: int, steps: int, device: torch.device) -> int:
    """So many programs a tile that each processor has two, of four steps or more each."""
    # the interpreter has none to count, and is to split small products too
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 8
    wanted = min(MOST_SPLITS, 2 * processors // tiles, steps // 4)
    return 1 << (wanted.bit_length() - 1) if wanted > 1 else 1
