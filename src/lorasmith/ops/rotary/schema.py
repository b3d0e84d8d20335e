"""Rotary position embedding of queries and keys, in the rounding of transformers' functions.

A pair (a, b) of columns becomes (a cos - b sin, b cos + a sin). Kept for the backward are cos and sin, which all layers
share. Nothing is written in place, though a rotation could be: q and k are views of what a projection gave, which hooks
may hold, and autograd may hand one gradient to several. The bytes that move are the same.

B batch, H heads (those of q and k may differ), T tokens, D columns of a head, of which the first R are turned.
Source: arXiv 2104.09864, equation 34.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lorasmith.errors import FormatError
from lorasmith.ops.library import define, implement_fake

define(
    "rotary",
    "(Tensor q, Tensor k, Tensor cos, Tensor sin, bool interleaved, bool per_pair, bool wide, bool backward)"
    " -> (Tensor, Tensor)",
)


class Rotation(NamedTuple):
    """How pairs lie and are rounded."""

    interleaved: bool = False
    """Pairs are columns 2j and 2j + 1, otherwise j and R / 2 + j (Llama)."""
    per_pair: bool = False
    """The table has R / 2 columns, one a pair, otherwise R, one for each value that comes out."""
    wide: bool = False
    """Products and sums are f32, otherwise each product is rounded to the type of q, which the table then has."""


LLAMA = Rotation()


def rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, rotation: Rotation = LLAMA) -> tuple[Tensor, Tensor]:
    """q [B, H, T, D] and k, turned by cos and sin [B or 1, T, R or R / 2]. Gradients go to q and k.

    The results lie in memory as q and k do. Raises FormatError where the tensors do not fit together.
    """
    complaint = misfit(q, k, cos, sin, rotation)
    if complaint:
        raise FormatError(complaint)
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad):
        return _Rotary.apply(q, k, cos, sin, rotation)
    return torch.ops.lorasmith.rotary.default(q, k, cos, sin, *rotation, False)


def misfit(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, rotation: Rotation) -> str | None:
    """Why rotary does not take these tensors; None where it does."""
    if q.dim() != 4 or k.dim() != 4 or q.dtype != k.dtype or not q.dtype.is_floating_point:
        return (
            f"q is {q.dtype} {list(q.shape)}, k {k.dtype} {list(k.shape)}; both must be [B, H, T, D] of one float type"
        )
    batch, _, tokens, width = q.shape
    if (k.shape[0], *k.shape[2:]) != (batch, tokens, width):
        return f"q is {list(q.shape)}, k {list(k.shape)}; they may differ in the number of heads only"
    tokens_of_all = cos.dim() == 3 and cos.shape[:2] in ((batch, tokens), (1, tokens))
    if cos.shape != sin.shape or cos.dtype != sin.dtype or not tokens_of_all:
        tables = f"cos is {cos.dtype} {list(cos.shape)}, sin {sin.dtype} {list(sin.shape)}"
        return f"{tables}; both must be [{batch} or 1, {tokens}, R]"
    turned = cos.shape[-1] * (2 if rotation.per_pair else 1)
    if turned > width or turned % 2 or turned == 0:
        return f"cos of {cos.shape[-1]} columns turns {turned} of {width}; use an even number of at most {width}"
    if cos.dtype != q.dtype and not (rotation.wide and cos.dtype == torch.float32):
        return f"cos is {cos.dtype}, q {q.dtype}; use one type, or f32 tables and wide"
    return None


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        ctx.rotation = rotation
        return torch.ops.lorasmith.rotary.default(q, k, cos, sin, *rotation, False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_q: Tensor, grad_k: Tensor) -> tuple[Tensor | None, ...]:
        grads = torch.ops.lorasmith.rotary.default(grad_q, grad_k, *ctx.saved_tensors, *ctx.rotation, True)
        wanted = (grad if needed else None for grad, needed in zip(grads, ctx.needs_input_grad[:2], strict=True))
        return *wanted, None, None, None


def _fake(q: Tensor, k: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k)


implement_fake("rotary", _fake)
