"""The blockwise ops on a GPU: codes, scales and values bit-equal to reference.py.

A program takes whole blocks, one a row of its tile, so that a scale (and its own scale, where it is nested) is read
once a block.
"""

from math import prod
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lorasmith.ops.blockwise import reference
from lorasmith.ops.blockwise.schema import bits_of, into_new
from lorasmith.ops.gpu import EXACT, FLOATS, current, serve
from lorasmith.ops.tiles import rounded

TILE = 4096
"""Elements of a program."""


@triton.jit
def levels_below(value, edges, BITS: tl.constexpr):
    """How many of the 2**BITS - 1 ascending edges lie below value, i32."""
    below = tl.zeros_like(value).to(tl.int32)
    for bit in tl.static_range(BITS):
        half = 1 << (BITS - 1 - bit)
        below += tl.where(value > tl.load(edges + below + half - 1), half, 0)
    return below


@triton.jit
def _code_of(value, midpoints, order, BITS: tl.constexpr):
    """The code of the nearest level: order[number of midpoints below value]."""
    return tl.load(order + levels_below(value, midpoints, BITS))


@triton.jit
def absmax_of(x):
    """The largest magnitude of each row, NaN where one is."""
    broken = tl.sum((x != x).to(tl.int32), 1) > 0
    return tl.where(broken, float("nan"), tl.max(tl.abs(x), 1))


@triton.jit
def _quantize_4bit(x, midpoints, order, packed, scales, numel, smallest, BLOCKSIZE: tl.constexpr, BLOCKS: tl.constexpr):
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    place = block[:, None] * BLOCKSIZE + tl.arange(0, BLOCKSIZE)[None, :]
    values = tl.load(x + place, mask=place < numel, other=0.0).to(tl.float32)
    absmax = absmax_of(values)
    clamped = tl.where(absmax < smallest, smallest, absmax)
    whole = (block + 1) * BLOCKSIZE <= numel
    # the partial last block is divided by its absmax, and keeps it clamped
    divided = tl.math.div_rn(values, clamped[:, None])
    scaled = tl.where(whole[:, None], values * tl.math.div_rn(1.0, clamped)[:, None], divided)
    codes = _code_of(scaled, midpoints, order, 4)
    high, low = tl.split(tl.reshape(codes, (BLOCKS, BLOCKSIZE // 2, 2)))
    byte = block[:, None] * (BLOCKSIZE // 2) + tl.arange(0, BLOCKSIZE // 2)[None, :]
    tl.store(packed + byte, (high << 4) | low, mask=2 * byte < numel)
    tl.store(scales + block, tl.where(whole, absmax, clamped), mask=block * BLOCKSIZE < numel)


@triton.jit
def _quantize_8bit(
    x, midpoints, order, codes, scales, numel, STEPS: tl.constexpr, BLOCKSIZE: tl.constexpr, BLOCKS: tl.constexpr
):
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    place = block[:, None] * BLOCKSIZE + tl.arange(0, BLOCKSIZE)[None, :]
    known = place < numel
    values = tl.load(x + place, mask=known, other=0.0).to(tl.float32)
    absmax = absmax_of(values)
    scaled = values * tl.math.div_rn(1.0, absmax)[:, None]
    # 0 * (1 / 0) is NaN, and the grid's first point stands for it
    scaled = tl.where(scaled != scaled, -1.0, tl.minimum(tl.maximum(scaled, -1.0), 1.0))
    point = tl.floor((scaled + 1.0) * (STEPS / 2) + 0.5)
    tl.store(codes + place, _code_of(point * (2.0 / STEPS) - 1.0, midpoints, order, 8), mask=known)
    tl.store(scales + block, absmax, mask=block * BLOCKSIZE < numel)


@triton.jit
def scale_of(block, known, scales, nested_scales, nested_offset, nested_codebook, NESTED: tl.constexpr):
    """The f32 scale of each block; NESTED blocks share a scale of their own, 0 where scales are stored as they are."""
    scale = tl.load(scales + block, mask=known, other=0)
    if NESTED > 0:
        level = tl.load(nested_codebook + scale.to(tl.int32))
        own = tl.load(nested_scales + block // NESTED, mask=known, other=0.0)
        return level * own + tl.load(nested_offset)
    else:
        return scale


@triton.jit
def _dequantize(
    packed,
    scales,
    codebook,
    nested_scales,
    nested_offset,
    nested_codebook,
    out,
    numel,
    columns,
    NESTED: tl.constexpr,
    BITS: tl.constexpr,
    GAP: tl.constexpr,
    BLOCKSIZE: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """A row of out ends GAP elements before the next begins; with a gap, blocks do not cross rows."""
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    known = block * BLOCKSIZE < numel
    scale = scale_of(block, known, scales, nested_scales, nested_offset, nested_codebook, NESTED)[:, None]
    place = block[:, None] * BLOCKSIZE + tl.arange(0, BLOCKSIZE)[None, :]
    if BITS == 4:
        byte = block[:, None] * (BLOCKSIZE // 2) + tl.arange(0, BLOCKSIZE // 2)[None, :]
        both = tl.load(packed + byte, mask=2 * byte < numel, other=0).to(tl.int32)
        values = tl.interleave(tl.load(codebook + (both >> 4)) * scale, tl.load(codebook + (both & 15)) * scale)
    else:
        codes = tl.load(packed + place, mask=place < numel, other=0).to(tl.int32)
        values = tl.load(codebook + codes) * scale
    inside = place < numel
    if GAP > 0:
        place += (block * BLOCKSIZE // columns * GAP)[:, None]
    tl.store(out + place, rounded(values, out.dtype.element_ty), mask=inside)


def quantize_blockwise(x: Tensor, codebook: Tensor, blocksize: int) -> tuple[Tensor, Tensor]:
    """packed uint8, scales f32; see schema.py."""
    flat = (x if x.dtype in FLOATS else x.float()).contiguous()
    bits, numel = bits_of(codebook), flat.numel()
    midpoints, order = reference.boundaries(codebook)
    packed = torch.empty(-(-numel * bits // 8), dtype=torch.uint8, device=x.device)
    scales = torch.empty(-(-numel // blocksize), dtype=torch.float32, device=x.device)
    tile, grid = _tiles(numel, blocksize)
    parts = (flat, midpoints, order.to(torch.uint8), packed, scales, numel)
    with current(x):
        if bits == 4:
            _quantize_4bit[grid](*parts, reference.SMALLEST_ABSMAX, **tile, **EXACT)
        else:
            _quantize_8bit[grid](*parts, reference.GRID_STEPS, **tile, **EXACT)
    return packed, scales


def dequantize_blockwise_out(
    packed: Tensor,
    scales: Tensor,
    codebook: Tensor,
    blocksize: int,
    shape: tuple[int, ...],
    nested_scales: Tensor | None,
    nested_offset: Tensor | None,
    nested_codebook: Tensor | None,
    nested_blocksize: int,
    out: Tensor,
) -> None:
    """Fill out with the values; see schema.py."""
    stored = (packed, scales, codebook, blocksize, shape)
    nested = (nested_scales, nested_offset, nested_codebook, nested_blocksize)
    if out.dtype not in FLOATS or prod(shape) == 0:
        reference.dequantize_blockwise_out(*stored, *nested, out)
    else:
        _launch(out, 0, *stored, *nested)


def dequantize_into_columns(stored: tuple[Any, ...], out: Tensor) -> None:
    """Fill out [O, I], columns of a matrix that has more of them, with the values; its blocks do not cross rows."""
    _launch(out, out.stride(0) - out.shape[1], *stored)


def _launch(
    out: Tensor,
    gap: int,
    packed: Tensor,
    scales: Tensor,
    codebook: Tensor,
    blocksize: int,
    shape: tuple[int, ...],
    nested_scales: Tensor | None,
    nested_offset: Tensor | None,
    nested_codebook: Tensor | None,
    nested_blocksize: int,
) -> None:
    numel = prod(shape)
    tile, grid = _tiles(numel, blocksize)
    parts = (packed, scales, codebook, nested_scales, nested_offset, nested_codebook, out, numel, shape[-1])
    group = 0 if nested_scales is None else nested_blocksize
    with current(packed):
        _dequantize[grid](*parts, NESTED=group, BITS=bits_of(codebook), GAP=gap, **tile, **EXACT)


dequantize_blockwise = into_new(dequantize_blockwise_out)


def _tiles(numel: int, blocksize: int) -> tuple[dict[str, int], tuple[int]]:
    """The sizes of a program's tile, and how many programs there are."""
    blocks = max(1, TILE // blocksize)
    return {"BLOCKSIZE": blocksize, "BLOCKS": blocks}, (triton.cdiv(numel, blocks * blocksize),)


serve("quantize_blockwise", quantize_blockwise)
serve("dequantize_blockwise", dequantize_blockwise)
serve("dequantize_blockwise_out", dequantize_blockwise_out)
