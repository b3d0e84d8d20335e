"""Cross-entropy of rows of logits on a GPU: one program a row, which reads it twice and writes the gradient over it.

The first pass keeps, for every vector of 16 bytes, the largest z so far and the sum of exp(z - that), so that an
element costs one exponential and the logits go by once (online softmax, arXiv 1805.02867). The second finds a row still
in the L2 cache where few enough are at work at once: see _shape. reference.py is the specification.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lorasmith.ops.gpu import FLOATS, current, serve
from lorasmith.ops.tiles import hyperbolic_tangent, rounded
from lorasmith.ops.token_loss import reference
from lorasmith.ops.token_loss.schema import Asked

ELEMENTS = 16
"""Logits of a thread in one step."""
LONG_ROW = 1 << 16
"""Columns from which a row takes all threads of a multiprocessor."""


@triton.jit
def _shaped(x, scale, softcap, CAPPED: tl.constexpr):
    """z of raw logits."""
    z = x.to(tl.float32) * scale
    if CAPPED:
        return hyperbolic_tangent(tl.math.div_rn(z, softcap)) * softcap
    else:
        return z


@triton.jit
def _token_loss(
    logits,
    labels,
    weights,
    losses,
    stride,
    scale,
    softcap,
    smoothing,
    z_loss,
    COLUMNS: tl.constexpr,
    CAPPED: tl.constexpr,
    SMOOTHED: tl.constexpr,
    GRADIENT: tl.constexpr,
    VECTORS: tl.constexpr,
    VECTOR: tl.constexpr,
):
    number = tl.program_id(0)
    row = logits + number.to(tl.int64) * stride
    label = tl.load(labels + number)
    # a label that is no column, which callers refuse, makes the loss NaN instead of reading elsewhere
    at_label = tl.load(row + label, mask=(label >= 0) & (label < COLUMNS), other=float("nan"))
    z_label = _shaped(at_label, scale, softcap, CAPPED)
    place = tl.arange(0, VECTORS)[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]

    # the lowest number and not -inf: -inf - -inf is NaN
    most = tl.full([VECTORS], -3.4028234663852886e38, tl.float32)
    powers = tl.zeros([VECTORS], tl.float32)
    # sums of z are taken from a near number, so that large ones keep their differences
    anchor = tl.where(tl.abs(z_label) < float("inf"), z_label, 0.0)
    total = tl.zeros([VECTORS], tl.float32)
    for start in range(0, COLUMNS, VECTORS * VECTOR):
        known = start + place < COLUMNS
        x = tl.load(row + start + place, mask=known, other=0.0)
        z = tl.where(known, _shaped(x, scale, softcap, CAPPED), float("-inf"))
        higher = tl.maximum(most, tl.max(z, 1))
        powers = powers * tl.exp(most - higher) + tl.sum(tl.exp(z - higher[:, None]), 1)
        most = higher
        if SMOOTHED:
            total += tl.sum(tl.where(known, z - anchor, 0.0), 1)
    top = tl.max(most, 0)
    power = tl.sum(powers * tl.exp(most - top), 0)
    # a row of nothing but -inf has no loss
    rest = tl.where(power > 0, tl.log(power), float("nan"))
    normaliser = top + rest
    loss = rest - (1 - smoothing) * (z_label - top) + z_loss * normaliser * normaliser
    if SMOOTHED:
        loss -= smoothing * (tl.sum(total, 0) / COLUMNS + (anchor - top))
    weight = 1.0 if weights is None else tl.load(weights + number)
    tl.store(losses + number, loss * weight)

    if GRADIENT:
        # to z: p (1 + 2 c lse) - s / columns, and at the label s - 1 more; to x through cap and scale
        factor = weight * scale
        rise = (1 + 2 * z_loss * normaliser) * tl.exp(-rest)
        even = smoothing / COLUMNS
        for start in range(0, COLUMNS, VECTORS * VECTOR):
            known = start + place < COLUMNS
            x = tl.load(row + start + place, mask=known, other=0.0)
            z = _shaped(x, scale, softcap, CAPPED)
            gradient = tl.exp(z - top) * rise - even
            gradient += tl.where(start + place == label, smoothing - 1, 0.0)
            if CAPPED:
                part = z / softcap
                gradient *= 1 - part * part
            tl.store(row + start + place, rounded(gradient * factor, logits.dtype.element_ty), mask=known)


def token_loss_(logits: Tensor, labels: Tensor, weights: Tensor | None, *given: Any) -> Tensor:
    """Losses f32 [N] and, over logits [N, V], their gradient; see schema.py."""
    rows, columns = logits.shape
    if logits.dtype not in FLOATS or logits.numel() == 0 or (columns > 1 and logits.stride(1) != 1):
        return reference.token_loss_(logits, labels, weights, *given)
    asked = Asked(*given)
    losses_N = torch.empty(rows, dtype=torch.float32, device=logits.device)
    factors_N = None if weights is None else weights.float().contiguous()
    vectors, vector, warps = _shape(columns, logits.element_size())
    with current(logits):
        _token_loss[(rows,)](
            *(logits, labels.contiguous(), factors_N, losses_N, logits.stride(0)),
            *(float(asked.scale), float(asked.softcap or 1.0), float(asked.label_smoothing), float(asked.z_loss)),
            COLUMNS=columns,
            CAPPED=asked.softcap is not None,
            SMOOTHED=asked.label_smoothing != 0,
            GRADIENT=asked.gradient,
            VECTORS=vectors,
            VECTOR=vector,
            num_warps=warps,
        )
    return losses_N


def _shape(columns: int, itemsize: int) -> tuple[int, int, int]:
    """Vectors of a tile, logits of a vector, and warps of a program.

    A long row gets 1,024 threads, so that a multiprocessor has hardly more than one row at work: 132 rows of 128,256
    logits in bf16 are 34 MB, which an H200's L2 (50 MB) holds until the second pass, and 1,056 smaller programs' rows
    are not. Shorter rows come some to a multiprocessor, whose passes then hide each other's ends.
    """
    most = 32 if columns >= LONG_ROW else 16
    tile = min(triton.next_power_of_2(columns), most * 32 * ELEMENTS)
    vector = 16 // itemsize
    return max(1, tile // vector), vector, max(1, tile // (32 * ELEMENTS))


serve("token_loss_", token_loss_)
