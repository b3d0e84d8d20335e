"""y = w x / sqrt(mean(x^2) + eps) over the last axis, in the rounding of transformers' modules.

Kept for the backward are x itself, which the residual keeps anyway, and the f32 factor of each row.
N rows (any leading axes), D columns. Source: arXiv 1910.07467.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lorasmith.errors import FormatError
from lorasmith.ops.library import define, implement_fake

define("rms_norm", "(Tensor x, Tensor weight, float eps, bool plus_one, bool rounds_first) -> (Tensor, Tensor)")
define(
    "rms_norm_backward",
    "(Tensor grad, Tensor x, Tensor weight, Tensor rms, bool plus_one, bool rounds_first, bool weight_trains)"
    " -> (Tensor, Tensor)",
)


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, plus_one: bool = False, rounds_first: bool = True) -> Tensor:
    """The norm of x [N, D] with weight [D] of the same type. Gradients go to x and weight.

    Statistics are f32. rounds_first rounds the normed x to its type before the product with the weight (Llama);
    plus_one multiplies by 1 + weight in f32 (Gemma). Raises FormatError where weight does not fit x.
    """
    if tuple(weight.shape) != tuple(x.shape[-1:]) or weight.dtype != x.dtype or not x.dtype.is_floating_point:
        raise FormatError(
            f"weight is {weight.dtype} {list(weight.shape)}; x is {x.dtype} {list(x.shape)}, so weight must be "
            f"{x.dtype} {list(x.shape[-1:])}"
        )
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _RmsNorm.apply(x, weight, eps, plus_one, rounds_first)
    return torch.ops.lorasmith.rms_norm.default(x, weight, eps, plus_one, rounds_first)[0]


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, plus_one: bool, rounds_first: bool) -> Tensor:
        y, rms_N = torch.ops.lorasmith.rms_norm.default(x, weight, eps, plus_one, rounds_first)
        ctx.save_for_backward(x, weight, rms_N)
        ctx.convention = (plus_one, rounds_first)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needs_x, needs_weight = ctx.needs_input_grad[:2]
        grad_x, grad_weight = torch.ops.lorasmith.rms_norm_backward.default(
            grad, *ctx.saved_tensors, *ctx.convention, needs_weight
        )
        return grad_x if needs_x else None, grad_weight if needs_weight else None, None, None, None


def _fake_forward(x: Tensor, weight: Tensor, *convention: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[:-1], dtype=torch.float32)


def _fake_backward(grad: Tensor, x: Tensor, weight: Tensor, rms: Tensor, *convention: Any) -> tuple[Tensor, Tensor]:
    weight_trains = convention[-1]
    return x.new_empty(x.shape), weight.new_empty(weight.shape if weight_trains else 0)


implement_fake("rms_norm", _fake_forward)
implement_fake("rms_norm_backward", _fake_backward)
