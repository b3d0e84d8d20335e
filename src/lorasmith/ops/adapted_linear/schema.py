"""y = g * (x W^T + sum over k of s_k drop_k(x) A_k^T B_k^T) + bias, W frozen: one autograd step.

Of the input only x itself is kept, which layers that read the same x share, and that only where an A trains; of each
update the small h_k = s_k drop_k(x) A_k^T; and where a gain g trains, the sum that it multiplies. The updates are
added into y and into the gradient of x in place. Updates may have rows of their own: one batch, several adapters; and
a frozen start, B_k A_k - B0 A0, whose factors are stacked with the others for the products and cost no gradient.
Source: LoRA, arXiv 2106.09685, section 4.1; QLoRA, arXiv 2305.14314, equation 5; DoRA, arXiv 2402.09353, equation 5.
Axes: N rows (any leading axes), n of them with an update, I in_features, O out_features, R rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lorasmith.errors import FormatError
from lorasmith.ops.adapted_linear.product import Product
from lorasmith.ops.adapted_linear.update import Course, LowRank, with_start
from lorasmith.ops.autocast import autocast_inputs
from lorasmith.ops.precision import factor_dtype, product_dtype, without_autocast


def adapted_linear(x: Tensor, product: Product, bias: Tensor | None, updates: Sequence[LowRank]) -> Tensor:
    """x [N, I] -> y [N, O] in x's type (autocast's where it is on). Gradients go to x, bias, and every A, B and gain.

    A and B may be of another type than x: they are read in f32 on a CPU and in the type of the product elsewhere, and
    get gradients in their own.
    Raises FormatError where an update does not fit x, and for a gain beside an update that has all rows.
    """
    for update in updates:
        update.check(x)
    alone = len(updates) == 1 or all(update.rows is not None for update in updates)
    if not alone and any(update.gain is not None for update in updates):
        raise FormatError("a gain multiplies the whole sum; beside other updates, each must have rows of its own")
    x, bias = autocast_inputs(x, bias)
    grad = torch.is_grad_enabled()
    if not grad and len(updates) == 1 and updates[0].plain:
        y = _in_one_operation(x, product, bias, updates[0].stacked)
        if y is not None:
            return y
    courses = tuple(Course.of(update) for update in updates)
    tensors = [tensor for update in updates for tensor in (update.a, update.b, update.gain)]
    if not grad:
        # an autograd step that keeps nothing still costs more than the thin products of one row
        return _computed(x, bias, product, courses, tensors, keeps_sum=False)[0]
    return _AdaptedLinear.apply(x, bias, product, courses, *tensors)


def _in_one_operation(x: Tensor, product: Product, bias: Tensor | None, update: LowRank) -> Tensor | None:
    if update.gain is None:
        return product.adapted(x, bias, update.a, update.b, update.scaling)
    y = product.adapted(x, None, update.a, update.b, update.scaling)
    if y is None:
        return None
    y = y * update.gain
    return (y if bias is None else y.add_(bias)).to(x.dtype)


@dataclass
class _Kept:
    """What a backward needs: of each update h [n, R] and the mask of its dropout, and the sum [N, O] before gains."""

    hiddens: list[Tensor] = field(default_factory=list)
    masks: list[Tensor | None] = field(default_factory=list)
    sum: Tensor | None = None


def _computed(
    x: Tensor,
    bias: Tensor | None,
    product: Product,
    courses: tuple[Course, ...],
    tensors: Sequence[Tensor | None],
    *,
    keeps_sum: bool,
) -> tuple[Tensor, _Kept]:
    """y [..., O] in x's type, and what to keep; tensors are A, B and gain of each update."""
    wide = product_dtype(x.dtype, x.device)
    gains = tensors[2::3]
    gained = any(gain is not None for gain in gains)
    kept = _Kept()
    with without_autocast(x.device):
        x_NI = x.reshape(-1, x.shape[-1])
        parts = zip(courses, tensors[::3], tensors[1::3], strict=True)
        lows = [_low(course, x_NI, a, b, wide, kept) for course, a, b in parts]
        base_bias = None if bias is None or gained else bias.to(wide)
        y_NO = summed(product, x_NI, base_bias, courses, lows, wide, wide if gained else x.dtype)
        if gained:
            kept.sum = y_NO.to(x.dtype, copy=True) if keeps_sum else None
            y_NO = _amplified_(y_NO, courses, gains)
            y_NO = y_NO if bias is None else y_NO.add_(bias)
    return y_NO.to(x.dtype).view(*x.shape[:-1], y_NO.shape[1]), kept


def _low(
    course: Course, x_NI: Tensor, a_RI: Tensor | None, b_OR: Tensor | None, wide: torch.dtype, kept: _Kept
) -> tuple[Tensor, Tensor]:
    """h [n, R] and B [O, R] of an update, those of its start among them."""
    assert a_RI is not None
    assert b_OR is not None
    exact = factor_dtype(wide, x_NI.device)
    rank = a_RI.shape[0]
    a_RI, b_OR = with_start(a_RI.to(exact), b_OR.to(exact), course.start)
    x_nI, mask = course.drop(x_NI)
    h_nR = course.project(x_nI, a_RI)
    # for the gradient of B, which the start has none of
    kept.hiddens.append(course.own(h_nR, rank))
    kept.masks.append(mask)
    return h_nR, b_OR


def summed(
    product: Product,
    x_NI: Tensor,
    bias: Tensor | None,
    courses: tuple[Course, ...],
    lows: Sequence[tuple[Tensor, Tensor]],
    wide: torch.dtype,
    dtype: torch.dtype,
) -> Tensor:
    """x W^T + bias, and what the updates add: [N, O], in dtype if there are updates and the last has all rows."""
    if len(courses) == 1 and courses[0].everywhere:
        y_NO = product.updated(x_NI.to(wide), bias, *lows[0])
        if y_NO is not None:
            return y_NO
    y_NO = product.forward(x_NI.to(wide), bias)
    for number, (course, (h_nR, b_OR)) in enumerate(zip(courses, lows, strict=True), 1):
        y_NO = course.add(y_NO, h_nR, b_OR.T, dtype if number == len(courses) else wide)
    return y_NO


def _amplified_(values_NO: Tensor, courses: Sequence[Course], gains: Sequence[Tensor | None]) -> Tensor:
    for course, gain in zip(courses, gains, strict=True):
        if gain is not None:
            course.put_(values_NO, course.of_rows(values_NO).mul_(gain))
    return values_NO


# where the tensors of the updates begin among the arguments of the step: behind x, bias, product and courses
_TENSORS = 4


class _AdaptedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor | None, product: Product, courses: tuple[Course, ...], *tensors: Tensor | None
    ) -> Tensor:
        needs = ctx.needs_input_grad[_TENSORS:]
        y, kept = _computed(x, bias, product, courses, tensors, keeps_sum=any(needs[2::3]))
        ctx.save_for_backward(x if any(needs[::3]) else None, kept.sum, *tensors, *kept.hiddens, *kept.masks)
        ctx.product, ctx.courses, ctx.x_shape, ctx.x_dtype = product, courses, x.shape, x.dtype
        ctx.wide = product_dtype(x.dtype, x.device)
        ctx.bias_dtype = None if bias is None else bias.dtype
        # autograd lets nobody change a view in place that a step returned, and models clip q, k and v so
        return y.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        count = len(ctx.courses)
        x, sum_NO, *saved = ctx.saved_tensors
        tensors, hiddens, masks = saved[: 3 * count], saved[3 * count : 4 * count], saved[4 * count :]
        needs = ctx.needs_input_grad[_TENSORS:]
        exact = factor_dtype(ctx.wide, grad.device)
        grad_x = grad_bias = None
        grads: list[Tensor | None] = []
        with without_autocast(grad.device):
            grad_NO = grad.reshape(-1, grad.shape[-1])
            # kept wherever an A trains
            x_NI: Any = None if x is None else x.reshape(-1, x.shape[-1])
            if ctx.needs_input_grad[1]:
                grad_bias = grad_NO.to(exact).sum(0).to(ctx.bias_dtype)
            grad_gains = _grad_gains(grad_NO, sum_NO, ctx.courses, tensors[2::3], needs[2::3])
            if any(gain is not None for gain in tensors[2::3]):
                grad_NO = _amplified_(grad_NO.to(ctx.wide, copy=True), ctx.courses, tensors[2::3])
            lows = []
            factors = (tensors[::3], tensors[1::3], needs[::3], needs[1::3])
            parts = zip(ctx.courses, *factors, hiddens, masks, grad_gains, strict=True)
            for course, a_RI, b_OR, needs_a, needs_b, h_nR, mask, grad_gain in parts:
                grad_nO = course.of_rows(grad_NO)
                all_a, all_b = with_start(a_RI.to(exact), b_OR.to(exact), course.start)
                u_nR = course.project(grad_nO, all_b.T)
                own_nR = course.own(u_nR, a_RI.shape[0])
                grads.append(course.outer(own_nR, course.dropped(x_NI, mask)).to(a_RI.dtype) if needs_a else None)
                grads.append(course.outer(h_nR, grad_nO).T.to(b_OR.dtype).contiguous() if needs_b else None)
                grads.append(grad_gain)
                lows.append((u_nR, all_a, mask))
            if ctx.needs_input_grad[0]:
                grad_x = _grad_x(ctx.product, grad_NO, ctx.courses, lows, ctx.wide, ctx.x_dtype)
                grad_x = grad_x.to(ctx.x_dtype).view(ctx.x_shape)
        return grad_x, grad_bias, None, None, *grads


def _grad_x(
    product: Product,
    grad_NO: Tensor,
    courses: tuple[Course, ...],
    lows: Sequence[tuple[Tensor, Tensor, Tensor | None]],
    wide: torch.dtype,
    dtype: torch.dtype,
) -> Tensor:
    """g W, and what the updates (u, A, mask) add: [N, I], in dtype if there are updates and the last has all rows."""
    if len(courses) == 1 and courses[0].everywhere and lows[0][2] is None:
        grad_x = product.updated_backward(grad_NO.to(wide), *lows[0][:2])
        if grad_x is not None:
            return grad_x
    grad_x = product.backward(grad_NO.to(wide))
    for number, (course, (u_nR, a_RI, mask)) in enumerate(zip(courses, lows, strict=True), 1):
        grad_x = _with_update(grad_x, course, u_nR, a_RI, mask, dtype if number == len(courses) else wide)
    return grad_x


def _grad_gains(
    grad_NO: Tensor,
    sum_NO: Tensor | None,
    courses: Sequence[Course],
    gains: Sequence[Tensor | None],
    needs: Sequence[bool],
) -> list[Tensor | None]:
    grads: list[Tensor | None] = []
    for course, gain, needed in zip(courses, gains, needs, strict=True):
        if gain is None or sum_NO is None or not needed:
            grads.append(None)
            continue
        each_nO = course.of_rows(grad_NO).to(gain.dtype) * course.of_rows(sum_NO)
        grads.append(each_nO if gain.dim() == 2 else each_nO.sum(0))
    return grads


def _with_update(
    grad_x: Tensor, course: Course, u_nR: Tensor, a_RI: Tensor, mask: Tensor | None, dtype: torch.dtype
) -> Tensor:
    if mask is None:
        return course.add(grad_x, u_nR, a_RI, dtype)
    own_nI = course.of_rows(grad_x)
    change_nI = course.product(u_nR, a_RI, own_nI).mul_(mask).to(grad_x.dtype)
    return course.put_(grad_x, own_nI.add_(change_nI, alpha=1 / (1 - course.dropout)))
