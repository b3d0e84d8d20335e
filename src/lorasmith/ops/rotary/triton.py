"""Rotary position embedding on a GPU, bit-equal to reference.py: q and k in one launch, each value moved once.

A program turns several heads of one token, so that its row of the table is read once for them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lorasmith.ops.gpu import EXACT, FLOATS, current, serve, unbroken
from lorasmith.ops.rotary import reference
from lorasmith.ops.tiles import rounded

TILE = 1024
"""Pairs of a program: 8 a thread of its four warps, so that each reads 16 bytes of 16-bit values at once."""


@triton.jit
def _pair(row, known, INTERLEAVED: tl.constexpr, PAIRS: tl.constexpr, BLOCK: tl.constexpr):
    """The first and second members of all pairs, f32 [H, P]; row points at the beginning of each head [H, 1]."""
    if INTERLEAVED:
        column = tl.arange(0, 2 * BLOCK)[None, :]
        both = tl.load(row + column, mask=known & (column < 2 * PAIRS), other=0.0).to(tl.float32)
        return tl.split(tl.reshape(both, (both.shape[0], BLOCK, 2)))
    else:
        pair = tl.arange(0, BLOCK)[None, :]
        mask = known & (pair < PAIRS)
        first = tl.load(row + pair, mask=mask, other=0.0).to(tl.float32)
        return first, tl.load(row + PAIRS + pair, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _entries(row, INTERLEAVED: tl.constexpr, PER_PAIR: tl.constexpr, PAIRS: tl.constexpr, BLOCK: tl.constexpr):
    """A token's entries of a table for the two members of all pairs, f32 [1, P]."""
    pair = tl.arange(0, BLOCK)[None, :]
    if PER_PAIR:
        entry = tl.load(row + pair, mask=pair < PAIRS, other=0.0).to(tl.float32)
        return entry, entry
    else:
        step: tl.constexpr = 2 if INTERLEAVED else 1
        apart: tl.constexpr = 1 if INTERLEAVED else PAIRS
        first = tl.load(row + step * pair, mask=pair < PAIRS, other=0.0).to(tl.float32)
        return first, tl.load(row + step * pair + apart, mask=pair < PAIRS, other=0.0).to(tl.float32)


@triton.jit
def _product(values, others, dtype: tl.constexpr, WIDE: tl.constexpr):
    if WIDE:
        return values * others
    else:
        return rounded(values * others, dtype).to(tl.float32)


@triton.jit
def _turn(
    x,
    out,
    first_head,
    heads,
    head_stride,
    out_head_stride,
    cos,
    sin,
    INTERLEAVED: tl.constexpr,
    PER_PAIR: tl.constexpr,
    WIDE: tl.constexpr,
    BACKWARD: tl.constexpr,
    PAIRS: tl.constexpr,
    BLOCK: tl.constexpr,
    REST: tl.constexpr,
    REST_BLOCK: tl.constexpr,
    HEADS: tl.constexpr,
):
    """Turn HEADS heads of one token, of which x and out point at the first."""
    head = (first_head + tl.arange(0, HEADS)).to(tl.int64)[:, None]
    known = head < heads
    row, out_row = x + head * head_stride, out + head * out_head_stride
    cos_first, cos_second = _entries(cos, INTERLEAVED, PER_PAIR, PAIRS, BLOCK)
    sin_first, sin_second = _entries(sin, INTERLEAVED, PER_PAIR, PAIRS, BLOCK)
    first, second = _pair(row, known, INTERLEAVED, PAIRS, BLOCK)
    dtype: tl.constexpr = out.dtype.element_ty
    if BACKWARD:
        to_first = _product(first, cos_first, dtype, WIDE) + _product(second, sin_second, dtype, WIDE)
        to_second = _product(second, cos_second, dtype, WIDE) - _product(first, sin_first, dtype, WIDE)
    else:
        to_first = _product(first, cos_first, dtype, WIDE) - _product(second, sin_first, dtype, WIDE)
        to_second = _product(second, cos_second, dtype, WIDE) + _product(first, sin_second, dtype, WIDE)
    pair = tl.arange(0, BLOCK)[None, :]
    if INTERLEAVED:
        column = tl.arange(0, 2 * BLOCK)[None, :]
        both = rounded(tl.interleave(to_first, to_second), dtype)
        tl.store(out_row + column, both, mask=known & (column < 2 * PAIRS))
    else:
        tl.store(out_row + pair, rounded(to_first, dtype), mask=known & (pair < PAIRS))
        tl.store(out_row + PAIRS + pair, rounded(to_second, dtype), mask=known & (pair < PAIRS))
    if REST > 0:
        column = tl.arange(0, REST_BLOCK)[None, :]
        mask = known & (column < REST)
        tl.store(out_row + 2 * PAIRS + column, tl.load(row + 2 * PAIRS + column, mask=mask), mask=mask)


@triton.jit
def _rotary(
    q,
    k,
    cos,
    sin,
    out_q,
    out_k,
    tokens,
    q_heads,
    k_heads,
    q_batch,
    q_head,
    q_token,
    k_batch,
    k_head,
    k_token,
    out_q_batch,
    out_q_head,
    out_q_token,
    out_k_batch,
    out_k_head,
    out_k_token,
    table_batch,
    table_token,
    INTERLEAVED: tl.constexpr,
    PER_PAIR: tl.constexpr,
    WIDE: tl.constexpr,
    BACKWARD: tl.constexpr,
    PAIRS: tl.constexpr,
    BLOCK: tl.constexpr,
    REST: tl.constexpr,
    REST_BLOCK: tl.constexpr,
    HEADS: tl.constexpr,
):
    batch = (tl.program_id(0) // tokens).to(tl.int64)
    token = (tl.program_id(0) % tokens).to(tl.int64)
    group = tl.program_id(1)
    of_q = tl.cdiv(q_heads, HEADS)
    cos += batch * table_batch + token * table_token
    sin += batch * table_batch + token * table_token
    if group < of_q:
        q += batch * q_batch + token * q_token
        out_q += batch * out_q_batch + token * out_q_token
        _turn(
            q, out_q, group * HEADS, q_heads, q_head, out_q_head, cos, sin,
            INTERLEAVED, PER_PAIR, WIDE, BACKWARD, PAIRS, BLOCK, REST, REST_BLOCK, HEADS,
        )  # fmt: skip
    else:
        k += batch * k_batch + token * k_token
        out_k += batch * out_k_batch + token * out_k_token
        _turn(
            k, out_k, (group - of_q) * HEADS, k_heads, k_head, out_k_head, cos, sin,
            INTERLEAVED, PER_PAIR, WIDE, BACKWARD, PAIRS, BLOCK, REST, REST_BLOCK, HEADS,
        )  # fmt: skip


def rotary(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, per_pair: bool, wide: bool, backward: bool
) -> tuple[Tensor, Tensor]:
    """q [B, H, T, D] and k turned, or their gradients; see schema.py."""
    options = (interleaved, per_pair, wide, backward)
    if q.dtype not in FLOATS or cos.dtype not in FLOATS or q.numel() == 0:
        return reference.rotary(q, k, cos, sin, *options)
    q, k = unbroken(q), unbroken(k)
    cos, sin = cos.contiguous(), sin.contiguous()
    outs = _room(q), _room(k)
    batch, q_heads, tokens, width = q.shape
    table = (cos.stride(0) if cos.shape[0] > 1 else 0, cos.stride(1))
    strides = [stride for x in (q, k, *outs) for stride in x.stride()[:3]]
    pairs = cos.shape[-1] if per_pair else cos.shape[-1] // 2
    tile = _tile(pairs, width - 2 * pairs, max(q_heads, k.shape[1]))
    groups = triton.cdiv(q_heads, tile["HEADS"]) + triton.cdiv(k.shape[1], tile["HEADS"])
    with current(q):
        _rotary[(batch * tokens, groups)](
            q, k, cos, sin, *outs, tokens, q_heads, k.shape[1], *strides, *table, *options, **tile, **EXACT
        )
    return outs


def _room(x: Tensor) -> Tensor:
    """A tensor laid out as x, whose heads are unbroken."""
    out = torch.empty_like(x)
    return out if out.stride(-1) == 1 else torch.empty_like(x, memory_format=torch.contiguous_format)


def _tile(pairs: int, rest: int, heads: int) -> dict[str, int]:
    """The sizes of a program, for a head of so many pairs and columns beside them."""
    block = triton.next_power_of_2(pairs)
    group = max(1, min(TILE // block, triton.next_power_of_2(heads)))
    sizes = {"PAIRS": pairs, "BLOCK": block, "REST": rest, "REST_BLOCK": triton.next_power_of_2(max(rest, 1))}
    return {**sizes, "HEADS": group, "num_warps": min(4, max(1, group * block // 256))}


serve("rotary", rotary)
