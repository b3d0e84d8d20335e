"""A Triton kernel for one row: y = x W^T + bias + h B^T straight from the 4-bit codes of W.

A program owns OUTS rows of W and all their columns, so its sums are whole and in a fixed order. A thread reads codes
by words, 8 columns that share a scale, which multiplies their sum instead of each of them. Products are f32 and of the
levels as they are, where the reference rounds level x scale to the type of x first.

On an H200 the limit is the arithmetic of decoding: at 75 % of 4.8 TB/s a weight has four instructions. Hence words,
not bytes (one shift and one mask a code), and levels out of shared memory (tl.gather), whose addresses take no 64 bits.
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
    triton.Config({"OUTS": outs, "WORDS": 32 * warps}, num_warps=warps) for outs, warps in ((16, 4), (8, 4), (8, 2))
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
    WORDS: tl.constexpr,
):
    o = tl.program_id(0).to(tl.int64) * OUTS + tl.arange(0, OUTS)
    inside = o < out_features
    levels = tl.load(codebook + tl.arange(0, 16))
    sums = tl.zeros((OUTS, WORDS), tl.float32)
    for start in range(0, in_features // 8, WORDS):
        word = start + tl.arange(0, WORDS)
        known = inside[:, None] & (word < in_features // 8)[None, :]
        codes = tl.load(words + (o * (in_features // 8))[:, None] + word[None, :], mask=known, other=0)
        block = (o * (in_features // BLOCKSIZE))[:, None] + (word // (BLOCKSIZE // 8))[None, :]
        scale = scale_of(block, known, scales, nested_scales, nested_offset, nested_codebook, NESTED)
        products = tl.zeros((OUTS, WORDS), tl.float32)
        for place in tl.static_range(8):
            # within a byte the even column has the high bits
            level = level_of(levels, (codes >> (4 * (place ^ 1))) & 15)
            value = tl.load(x + word * 8 + place, mask=word < in_features // 8, other=0.0)
            products += level * value.to(tl.float32)[None, :]
        sums += products * scale
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
