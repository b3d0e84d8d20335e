"""y = x W^T + bias + sum over k of s_k drop_k(x) A_k^T B_k^T, W frozen: one autograd step.

Of the input only x itself is kept, which layers that read the same x share, and that only where an A or B trains; of
each update the small h_k = s_k drop_k(x) A_k^T. The updates are added into y and into the gradient of x in place.
Source: LoRA, arXiv 2106.09685, section 4.1; QLoRA, arXiv 2305.14314, equation 5.
Axes: N rows (any leading axes), I in_features, O out_features, R rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lorasmith.errors import FormatError
from lorasmith.ops.adapted_linear.product import Product
from lorasmith.ops.autocast import autocast_inputs
from lorasmith.ops.low_rank.schema import add_update, outer, project
from lorasmith.ops.precision import factor_dtype, product_dtype, without_autocast


@dataclass(frozen=True)
class LowRank:
    """One update: A [R, I], B [O, R], the factor s, and the share of x's elements that are dropped before A."""

    a: Tensor
    b: Tensor
    scaling: float
    dropout: float = 0.0


def adapted_linear(x: Tensor, product: Product, bias: Tensor | None, updates: Sequence[LowRank]) -> Tensor:
    """x [N, I] -> y [N, O] in x's type (autocast's where it is on). Gradients go to x, bias, and every A and B.

    A and B may be of another type than x: they are read in f32 on a CPU and in the type of the product elsewhere, and
    get gradients in their own.
    Raises FormatError where an update does not fit x.
    """
    for update in updates:
        if update.a.shape[1] != x.shape[-1] or update.a.shape[0] != update.b.shape[1]:
            raise FormatError(
                f"an update of A {list(update.a.shape)} and B {list(update.b.shape)} does not fit x {list(x.shape)}"
            )
    x, bias = autocast_inputs(x, bias)
    grad = torch.is_grad_enabled()
    if not grad and len(updates) == 1 and updates[0].dropout == 0.0:
        y = product.adapted(x, bias, updates[0].a, updates[0].b, updates[0].scaling)
        if y is not None:
            return y
    scales = tuple((update.scaling, update.dropout) for update in updates)
    factors = [factor for update in updates for factor in (update.a, update.b)]
    if not grad:
        # an autograd step that keeps nothing still costs more than the thin products of one row
        return _computed(x, bias, product, scales, factors)[0]
    return _AdaptedLinear.apply(x, bias, product, scales, *factors)


def _computed(
    x: Tensor,
    bias: Tensor | None,
    product: Product,
    scales: tuple[tuple[float, float], ...],
    factors: Sequence[Tensor],
) -> tuple[Tensor, list[Tensor], list[Tensor | None]]:
    """y [..., O] in x's type, and of each update h [N, R] and the mask of its dropout."""
    wide = product_dtype(x.dtype, x.device)
    exact = factor_dtype(wide, x.device)
    hiddens: list[Tensor] = []
    masks: list[Tensor | None] = []
    with without_autocast(x.device):
        x_NI = x.reshape(-1, x.shape[-1])
        y_NO = product.forward(x_NI.to(wide), None if bias is None else bias.to(wide))
        for (scaling, dropout), a_RI, b_OR in zip(scales, factors[::2], factors[1::2], strict=True):
            kept_NI, mask = _drop(x_NI, dropout)
            hiddens.append(project(kept_NI, a_RI.to(exact), scaling))
            masks.append(mask)
            dtype = x.dtype if len(hiddens) == len(scales) else wide
            y_NO = add_update(y_NO, hiddens[-1], b_OR.to(exact).T, dtype)
    return y_NO.to(x.dtype).view(*x.shape[:-1], y_NO.shape[1]), hiddens, masks


# where the factors begin among the arguments of the step: behind x, bias, product and scales
_FACTORS = 4


class _AdaptedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        bias: Tensor | None,
        product: Product,
        scales: tuple[tuple[float, float], ...],
        *factors: Tensor,
    ) -> Tensor:
        y, hiddens, masks = _computed(x, bias, product, scales, factors)
        trains = any(ctx.needs_input_grad[_FACTORS:])
        ctx.save_for_backward(x if trains else None, *factors, *hiddens, *masks)
        ctx.product, ctx.scales, ctx.x_shape, ctx.x_dtype = product, scales, x.shape, x.dtype
        ctx.wide = product_dtype(x.dtype, x.device)
        ctx.bias_dtype = None if bias is None else bias.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        count = len(ctx.scales)
        x, *saved = ctx.saved_tensors
        factors, hiddens, masks = saved[: 2 * count], saved[2 * count : 3 * count], saved[3 * count :]
        exact = factor_dtype(ctx.wide, grad.device)
        grad_x = grad_bias = None
        grad_factors: list[Tensor | None] = []
        with without_autocast(grad.device):
            grad_NO = grad.reshape(-1, grad.shape[-1])
            # kept wherever an A trains
            x_NI: Any = None if x is None else x.reshape(-1, x.shape[-1])
            if ctx.needs_input_grad[0]:
                grad_x = ctx.product.backward(grad_NO.to(ctx.wide))
            if ctx.needs_input_grad[1]:
                grad_bias = grad_NO.to(exact).sum(0).to(ctx.bias_dtype)
            needs = ctx.needs_input_grad[_FACTORS:]
            parts = zip(ctx.scales, factors[::2], factors[1::2], hiddens, masks, needs[::2], needs[1::2], strict=True)
            for (scaling, dropout), a_RI, b_OR, h_NR, mask, needs_a, needs_b in parts:
                u_NR = project(grad_NO, b_OR.to(exact).T, scaling)
                grad_factors.append(outer(u_NR, _dropped(x_NI, mask, dropout)).to(a_RI.dtype) if needs_a else None)
                grad_factors.append(outer(h_NR, grad_NO).T.to(b_OR.dtype).contiguous() if needs_b else None)
                if grad_x is not None:
                    dtype = ctx.x_dtype if len(grad_factors) == 2 * count else ctx.wide
                    grad_x = _with_update(grad_x, u_NR, a_RI.to(exact), mask, dropout, dtype)
        if grad_x is not None:
            grad_x = grad_x.to(ctx.x_dtype).view(ctx.x_shape)
        return grad_x, grad_bias, None, None, *grad_factors


def _drop(x_NI: Tensor, dropout: float) -> tuple[Tensor, Tensor | None]:
    if dropout == 0.0:
        return x_NI, None
    return torch.native_dropout(x_NI, dropout, True)


def _dropped(x_NI: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    return x_NI if mask is None else x_NI * mask * (1 / (1 - dropout))


def _with_update(
    grad_x: Tensor, u_NR: Tensor, a_RI: Tensor, mask: Tensor | None, dropout: float, dtype: torch.dtype
) -> Tensor:
    if mask is None:
        return add_update(grad_x, u_NR, a_RI, dtype)
    return grad_x.add_((u_NR @ a_RI).mul_(mask).to(grad_x.dtype), alpha=1 / (1 - dropout))
