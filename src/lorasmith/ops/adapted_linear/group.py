"""Linear layers that read the same x, each with an update of its own, as one autograd step: gate and up; q, k and v.

x is read once for h = s x [A_1; A_2; ...]^T and once for the gradients of all A, and the gradient of x is one tensor
that each layer's product is added to, instead of one tensor a layer and autograd's additions. What each layer gives is
what adapted_linear gives; gradients are the same sums in another order.
Axes: N rows (any leading axes), I in_features, O out_features of a layer, R the ranks of all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lorasmith.ops.adapted_linear.product import Product
from lorasmith.ops.adapted_linear.schema import adapted_linear, summed
from lorasmith.ops.adapted_linear.update import Course, LowRank, with_start
from lorasmith.ops.autocast import autocast_inputs
from lorasmith.ops.low_rank.schema import add_update, outer, project
from lorasmith.ops.precision import factor_dtype, product_dtype, without_autocast


@dataclass(frozen=True)
class Part:
    """What one layer does: its frozen weight, its bias, its updates."""

    product: Product
    bias: Tensor | None
    updates: Sequence[LowRank]


@runtime_checkable
class Joinable(Protocol):
    """A layer that may compute in one step with others that read the same x."""

    def part(self, x: Tensor) -> Part | None:
        """What its forward does with x, where that is an adapted_linear; else None."""

    def make_ready(self, x: Tensor, y: Tensor) -> None:
        """Let the next call give y, if it is with x itself."""

    def forget_ready(self) -> None:
        """Let calls compute again."""


@cache
def joinable(kind: type) -> bool:
    """Whether layers of this class are Joinable."""
    return issubclass(kind, Joinable)


def adapted_linears(x: Tensor, parts: Sequence[Part]) -> list[Tensor]:
    """adapted_linear of x [N, I] for each part: y [N, O] each.

    One step while gradients are computed, if each part has one update, plain and without a gain, and all scale alike;
    else a step each. Raises FormatError as adapted_linear does.
    """
    for part in parts:
        for update in part.updates:
            update.check(x)
    if len(parts) < 2 or not torch.is_grad_enabled() or not all(_alike(part, parts[0]) for part in parts):
        return [adapted_linear(x, part.product, part.bias, part.updates) for part in parts]
    x, _ = autocast_inputs(x, None)
    biases = [autocast_inputs(x, part.bias)[1] for part in parts]
    updates = [part.updates[0] for part in parts]
    factors = [factor for update in updates for factor in (update.a, update.b)]
    courses = tuple(Course.of(update) for update in updates)
    results = _AdaptedLinears.apply(x, tuple(part.product for part in parts), courses, *biases, *factors)
    return [y_NO.view(*x.shape[:-1], y_NO.shape[1]) for y_NO in results]


def _alike(part: Part, first: Part) -> bool:
    if len(part.updates) != 1 or len(first.updates) != 1:
        return False
    (update,), (other,) = part.updates, first.updates
    return update.plain and update.gain is None and update.scaling == other.scaling


# where the biases, and behind them the factors, begin among the arguments of the step
_BIASES = 3


class _AdaptedLinears(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, products: tuple[Product, ...], courses: tuple[Course, ...], *tensors: Any
    ) -> tuple[Tensor, ...]:
        count = len(products)
        biases, a_parts, b_parts = tensors[:count], tensors[count::2], tensors[count + 1 :: 2]
        wide = product_dtype(x.dtype, x.device)
        stacks = _stacks(courses, a_parts, b_parts, factor_dtype(wide, x.device))
        with without_autocast(x.device):
            x_NI = x.reshape(-1, x.shape[-1])
            h_NR = project(x_NI, torch.cat([a for a, _ in stacks]), courses[0].scaling)
            hiddens = [h.contiguous() for h in h_NR.split([len(a) for a, _ in stacks], 1)]
            results = []
            for product, course, bias, h, (_, b) in zip(products, courses, biases, hiddens, stacks, strict=True):
                wide_bias = None if bias is None else bias.to(wide)
                y_NO = summed(product, x_NI, wide_bias, (course,), [(h, b)], wide, x.dtype)
                # of a step's several results none that is a view may be changed in place
                results.append(y_NO.detach())
        needs_a = ctx.needs_input_grad[_BIASES + count :: 2]
        own = [course.own(h, len(a)) for course, h, a in zip(courses, hiddens, a_parts, strict=True)]
        ctx.save_for_backward(x if any(needs_a) else None, *a_parts, *b_parts, *own)
        ctx.set_materialize_grads(False)
        ctx.products, ctx.courses, ctx.wide, ctx.x_shape, ctx.x_dtype = products, courses, wide, x.shape, x.dtype
        ctx.bias_dtypes = [None if bias is None else bias.dtype for bias in biases]
        return tuple(results)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        count = len(ctx.products)
        x, *saved = ctx.saved_tensors
        a_parts, b_parts, hiddens = (saved[start * count : (start + 1) * count] for start in range(3))
        needs_x, needs_bias = ctx.needs_input_grad[0], ctx.needs_input_grad[_BIASES : _BIASES + count]
        needs_a, needs_b = (ctx.needs_input_grad[_BIASES + count + start :: 2] for start in range(2))
        # a layer whose output nothing was made of has no gradient
        live = [part for part, grad in enumerate(grads) if grad is not None]
        of_bias: list[Tensor | None] = [None] * count
        of_factors: list[Tensor | None] = [None] * (2 * count)
        if not live:
            return None, None, None, *of_bias, *of_factors
        exact = factor_dtype(ctx.wide, a_parts[0].device)
        with without_autocast(a_parts[0].device):
            flat = {part: grad for part, grad in enumerate(grads) if grad is not None}
            stacks = dict(enumerate(_stacks(ctx.courses, a_parts, b_parts, exact)))
            lows = {part: project(flat[part], stacks[part][1].T, ctx.courses[part].scaling) for part in live}
            for part in live:
                if needs_bias[part]:
                    of_bias[part] = flat[part].to(exact).sum(0).to(ctx.bias_dtypes[part])
                if needs_b[part]:
                    b_OR = outer(hiddens[part], flat[part]).T
                    of_factors[2 * part + 1] = b_OR.to(b_parts[part].dtype).contiguous()
            trained = [part for part in live if needs_a[part]]
            if trained:
                own = [ctx.courses[part].own(lows[part], len(a_parts[part])) for part in trained]
                rows = outer(torch.cat(own, 1), x.reshape(-1, x.shape[-1])).split([low.shape[1] for low in own])
                for part, a_RI in zip(trained, rows, strict=True):
                    of_factors[2 * part] = a_RI.to(a_parts[part].dtype)
            grad_x = None
            if needs_x:
                low_NR, a_RI = (
                    torch.cat([lows[part] for part in live], 1),
                    torch.cat([stacks[part][0] for part in live]),
                )
                wide_grads = [(ctx.products[part], flat[part].to(ctx.wide)) for part in live]
                grad_x = _grad_x(wide_grads, low_NR, a_RI, ctx.x_dtype).to(ctx.x_dtype).view(ctx.x_shape)
        return grad_x, None, None, *of_bias, *of_factors


def _stacks(
    courses: Sequence[Course], a_parts: Sequence[Tensor], b_parts: Sequence[Tensor], dtype: torch.dtype
) -> list[tuple[Tensor, Tensor]]:
    """A and B of each update in dtype, those of its start among them."""
    parts = zip(courses, a_parts, b_parts, strict=True)
    return [with_start(a.to(dtype), b.to(dtype), course.start) for course, a, b in parts]


def _grad_x(grads: Sequence[tuple[Product, Tensor]], low_NR: Tensor, a_RI: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum over the layers of g W, and u A of all: [N, I]."""
    (product, grad_NO), *others = grads
    grad_x = product.updated_backward(grad_NO, low_NR, a_RI)
    updated = grad_x is not None
    grad_x = product.backward(grad_NO) if grad_x is None else grad_x
    for product, grad_NO in others:
        product.backward_onto_(grad_NO, grad_x)
    return grad_x if updated else add_update(grad_x, low_NR, a_RI, dtype)
