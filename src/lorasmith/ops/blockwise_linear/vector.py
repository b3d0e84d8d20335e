"""A Triton kernel for one row: y = x W^T + bias + h B^T straight from the 4-bit codes of W.

A program owns OUTS rows of W and all their columns, so its sums are whole and in a fixed order. A thread reads 16 bytes
of codes at once: four words of 8 columns, which share a scale, that multiplies their sum instead of each of them.
Products are f32 and of the levels as they are, where the reference rounds level x scale to the type of x first.

On an H200 the limit is the arithmetic of decoding: at 75 % of 4.8 TB/s a weight has four instructions, and compiled for
it the loop has about seven (ten, by words alone). Hence words and not bytes (one shift and one mask a code), and levels
out of shared memory (tl.gather), whose addresses take no 64 bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lorasmith.ops.blockwise.triton import scale_of
from lorasmith.ops.blockwise_linear.packed import PackedWeight, Update
from lorasmith.ops.gpu import current, tuned
from lorasmith.ops.tiles import rounded

CONFIGS = [
    triton.Config({"OUTS": outs, "GROUPS": groups}, num_warps=warps)
    # one warp passes levels between its lanes, and waits for no other
    for outs, groups, warps in ((4, 128, 4), (8, 64, 4), (2, 128, 4), (4, 32, 1))
]


@triton.jit
def level_of(levels, codes):
    """levels [16], a tile, at each of codes, a tile of any shape."""
    return tl.reshape(tl.gather(levels, tl.reshape(codes, (codes.numel,)), 0), codes.shape)


@tuned(CONFIGS, key=["out_features", "in_features", "NESTED", "rank"])
@triton.jit
def _multiply(
    x,
    bias,
    words,
    scales,
    codebook,
    nested_scales,
    nested_offset,
    nested_codebook,
    h,
    b,
    out,
    out_features: tl.constexpr,
    in_features: tl.constexpr,
    rank: tl.constexpr,
    NESTED: tl.constexpr,
    BLOCKSIZE: tl.constexpr,
    OUTS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """Columns by groups of four words, 32 of them: the smallest block."""
    o = tl.program_id(0).to(tl.int64) * OUTS + tl.arange(0, OUTS)
    inside = o < out_features
    levels = tl.load(codebook + tl.arange(0, 16))
    sums = tl.zeros((OUTS, GROUPS), tl.float32)
    four = tl.arange(0, 4)
    for start in range(0, in_features // 32, GROUPS):
        group = start + tl.arange(0, GROUPS)
        there = group < in_features // 32
        known = inside[:, None] & there[None, :]
        first = (o * (in_features // 32))[:, None] + group[None, :]
        place = (first * 4)[:, :, None] + four[None, None, :]
        codes = tl.load(words + place, mask=known[:, :, None], other=0)
        block = first // (BLOCKSIZE // 32)
        scale = scale_of(block, known, scales, nested_scales, nested_offset, nested_codebook, NESTED)
        products = tl.zeros((OUTS, GROUPS, 4), tl.float32)
        for column in tl.static_range(8):
            # within a byte the even column has the high bits
            level = level_of(levels, (codes >> (4 * (column ^ 1))) & 15)
            where = (group * 32)[:, None] + (four * 8)[None, :] + column
            value = tl.load(x + where, mask=there[:, None], other=0.0)
            products += level * value.to(tl.float32)[None, :, :]
        sums += tl.sum(products, 2) * scale
    y = tl.sum(sums, 1)
    if rank > 0:
        r = tl.arange(0, triton.next_power_of_2(rank))
        low = tl.load(h + r, mask=r < rank, other=0.0)
        high = tl.load(b + o[:, None] * rank + r[None, :], mask=inside[:, None] & (r < rank)[None, :], other=0.0)
        y += tl.sum(high.to(tl.float32) * low[None, :], 1)
    if bias is not None:
        y += tl.load(bias + o, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + o, rounded(y, out.dtype.element_ty), mask=inside)


def multiply(x: Tensor, bias: Tensor | None, weight: PackedWeight, update: Update | None) -> Tensor:
    """x W^T + bias + h B^T of x [1, I]: y [1, O] in x's type."""
    out = torch.empty((1, weight.out_features), dtype=x.dtype, device=x.device)
    h, b, rank = (None, None, 0) if update is None else (update.h, update.b, update.b.shape[1])
    words = weight.packed.view(-1).view(torch.int32)
    with current(x):
        _multiply[lambda config: (triton.cdiv(weight.out_features, config["OUTS"]),)](
            x,
            bias,
            words,
            *weight.tables,
            h,
            b,
            out,
            weight.out_features,
            weight.in_features,
            rank,
            NESTED=weight.nested_blocksize,
            BLOCKSIZE=weight.blocksize,
        )
    return out
