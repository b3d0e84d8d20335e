"""AdamW's step on 8-bit moments on a GPU: one pass over everything, bit-equal to reference.py.

A program takes whole blocks, one a row of its tile. An f32 weight costs 16 bytes an element, gradient included; a bf16
one with its master 18. Both maps and their edges (4 KiB) stay in the first cache.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from lorasmith.ops.adam8bit import reference
from lorasmith.ops.adam8bit.blocks import BLOCKSIZE
from lorasmith.ops.adam8bit.schema import parts_of
from lorasmith.ops.blockwise.triton import absmax_of, levels_below
from lorasmith.ops.gpu import EXACT, current, serve
from lorasmith.ops.remainder import REMAINDER
from lorasmith.ops.tiles import rounded

BLOCKS, WARPS = 4, 8
"""Blocks and warps of a program: 4 elements a thread, each some ten numbers; 64 registers, so half of all warps fit."""


@triton.jit
def _read(codes, scales, levels, block, place, numel, SIZE: tl.constexpr):
    scale = tl.load(scales + block, mask=block * SIZE < numel, other=0.0)
    level = tl.load(levels + tl.load(codes + place, mask=place < numel, other=0).to(tl.int32))
    return level * scale[:, None]


@triton.jit
def _write(values, codes, scales, edges, block, place, numel, SIZE: tl.constexpr):
    # what lies behind the end has been read as the lowest level
    values = tl.where(place < numel, values, 0.0)
    scale = absmax_of(values)
    scaled = tl.math.div_rn(values, tl.broadcast_to(scale[:, None], values.shape))
    # a block of zeros divides zero by zero
    scaled = tl.where(scaled != scaled, 0.0, scaled)
    tl.store(codes + place, levels_below(scaled, edges, 8).to(tl.uint8), mask=place < numel)
    tl.store(scales + block, scale, mask=block * SIZE < numel)


@triton.jit
def _upper(narrow):
    """The bits of bf16 as the upper half of int32."""
    return narrow.to(tl.int16, bitcast=True).to(tl.int32) << 16


@triton.jit
def _step(
    weight,
    master,
    gradient,
    mean_codes,
    mean_scales,
    mean_levels,
    mean_edges,
    square_codes,
    square_scales,
    square_levels,
    square_edges,
    numel,
    beta1,
    rest1,
    beta2,
    rest2,
    root,
    eps,
    decay,
    rate,
    MASTER: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    place = block[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    known = place < numel
    g = tl.load(gradient + place, mask=known, other=0.0).to(tl.float32)
    mean = _read(mean_codes, mean_scales, mean_levels, block, place, numel, SIZE) * beta1 + g * rest1
    square = _read(square_codes, square_scales, square_levels, block, place, numel, SIZE) * beta2 + g * g * rest2
    narrow = tl.load(weight + place, mask=known, other=0.0)
    wide = narrow.to(tl.float32)
    if MASTER == "whole":
        kept = tl.load(master + place, mask=known, other=0.0)
        wide = tl.where(rounded(kept, weight.dtype.element_ty).to(tl.float32) == wide, kept, wide)
    if MASTER == "remainder":
        bits = _upper(narrow) + tl.load(master + place, mask=known, other=0).to(tl.int32)
        wide = tl.where(wide == 0.0, 0.0, bits.to(tl.float32, bitcast=True))
    denominator = tl.math.sqrt_rn(square) * root + eps
    wide = wide * decay - tl.math.div_rn(mean, denominator) * rate
    narrow = rounded(wide, weight.dtype.element_ty)
    tl.store(weight + place, narrow, mask=known)
    if MASTER == "whole":
        tl.store(master + place, wide, mask=known)
    if MASTER == "remainder":
        left = tl.minimum(wide.to(tl.int32, bitcast=True) - _upper(narrow), 32767)
        tl.store(master + place, left.to(tl.int16), mask=known)
    _write(mean, mean_codes, mean_scales, mean_edges, block, place, numel, SIZE)
    _write(square, square_codes, square_scales, square_edges, block, place, numel, SIZE)


def _kind(master: Tensor | None) -> str:
    if master is None:
        return ""
    return "remainder" if master.dtype == REMAINDER else "whole"


def adam8bit_(weight: Tensor, master: Tensor | None, gradient: Tensor, *arguments: Any) -> None:
    """See schema.py."""
    if not weight.is_contiguous():
        reference.adam8bit_(weight, master, gradient, *arguments)
        return
    mean, square, c = parts_of(arguments)
    scalars = (c.beta1, c.rest1, c.beta2, c.rest2, c.root, c.eps, c.decay, c.rate)
    numel = weight.numel()
    grid = (triton.cdiv(numel, BLOCKS * BLOCKSIZE),)
    with current(weight):
        _step[grid](
            *(weight, master, gradient.contiguous(), *mean, *square, numel, *scalars),
            **{"MASTER": _kind(master), "SIZE": BLOCKSIZE, "BLOCKS": BLOCKS},
            num_warps=WARPS,
            **EXACT,
        )


serve("adam8bit_", adam8bit_)
