"""What a row of logits costs under its label, and the gradient to it written over the logits.

z = cap(scale * x), cap(u) = softcap * tanh(u / softcap), lse = logsumexp(z), y the label; a row costs
(1 - s) (lse - z_y) + s (lse - mean z) + c lse^2, times its weight. Axes: N rows, V vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lorasmith.errors import DataError, FormatError
from lorasmith.ops import gpu, native
from lorasmith.ops.library import NATIVE_KERNELS, define, implement_fake

define(
    "token_loss_",
    "(Tensor(a!) logits, Tensor labels, Tensor? weights, float? softcap, float scale, float label_smoothing,"
    " float z_loss, bool gradient) -> Tensor",
)


class Asked(NamedTuple):
    """The numbers of the op, as they stand behind the tensors."""

    softcap: float | None
    scale: float
    label_smoothing: float
    z_loss: float
    gradient: bool


@dataclass(frozen=True)
class Objective:
    """What a row's loss is: the negative log likelihood in plain form.

    label_smoothing is s in [0, 1), as torch's cross_entropy has it; z_loss is c >= 0 (PaLM, arXiv 2204.02311, section
    5). Raises FormatError for values out of range.
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise FormatError(f"label_smoothing={self.label_smoothing} must be from 0 to below 1")
        if not 0 <= self.z_loss < math.inf:
            raise FormatError(f"z_loss={self.z_loss} must be at least 0")


PLAIN = Objective()
"""The negative log likelihood and nothing else."""


@dataclass(frozen=True)
class Shaping:
    """What a model does to the output of its head before the softmax. Raises FormatError for a softcap of 0 or less."""

    softcap: float | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.softcap is not None and not 0 < self.softcap < math.inf:
            raise FormatError(f"softcap={self.softcap} must be above 0, or None for none")


def token_losses_(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    *,
    shaping: Shaping = Shaping(),
    objective: Objective = PLAIN,
    gradient: bool,
) -> Tensor:
    """Losses [N], at least f32, of logits [N, V] under labels int64 [N], each times weights [N].

    The logits are lost: with gradient, each row's loss's gradient to them takes their place. A step of an autograd
    function, without a gradient of its own. Raises FormatError for logits that autograd still needs, and for shapes or
    labels that do not fit.
    """
    if logits.requires_grad and torch.is_grad_enabled():
        raise FormatError("logits that require a gradient would be lost; use token_losses")
    _check(logits, labels, weights)
    asked = Asked(shaping.softcap, shaping.scale, objective.label_smoothing, objective.z_loss, gradient)
    return torch.ops.lorasmith.token_loss_.default(logits, labels, weights, *asked)


def token_losses(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    *,
    shaping: Shaping = Shaping(),
    objective: Objective = PLAIN,
) -> Tensor:
    """As token_losses_, of logits that stay as they are and get their gradient in the ordinary way; weights get none.

    Raises DataError for a label beyond the columns.
    """
    _check(logits, labels, weights)
    stray = stray_label(labels, logits.shape[1])
    if stray is not None:
        raise DataError(f"label {stray} is not one of the {logits.shape[1]} classes that the logits are of")
    return differentiable_losses(logits, labels, weights, shaping, objective)


def differentiable_losses(
    logits: Tensor, labels: Tensor, weights: Tensor | None, shaping: Shaping, objective: Objective
) -> Tensor:
    """token_losses of labels that were looked through."""
    if not torch.is_grad_enabled():
        return token_losses_(logits.clone(), labels, weights, shaping=shaping, objective=objective, gradient=False)
    return _TokenLosses.apply(logits, labels, None if weights is None else weights.detach(), shaping, objective)


def stray_label(labels: Tensor, classes: int) -> int | None:
    """A label that is not from 0 to below classes, or None where all are."""
    if labels.numel() == 0:
        return None
    # both at once: each read from a GPU waits for all that is queued there
    extremes: list[int] = torch.stack(torch.aminmax(labels)).tolist()
    return next((label for label in extremes if not 0 <= label < classes), None)


def _check(logits: Tensor, labels: Tensor, weights: Tensor | None) -> None:
    if logits.dim() != 2 or labels.shape != logits.shape[:1] or labels.dtype != torch.int64:
        raise FormatError(
            f"labels {labels.dtype} {list(labels.shape)} do not fit logits {list(logits.shape)}: logits must be [N, V] "
            "and labels torch.int64 [N]"
        )
    if weights is not None and weights.shape != labels.shape:
        raise FormatError(f"weights {list(weights.shape)} do not fit labels {list(labels.shape)}; give one for each")


def loss_bytes(dtype: torch.dtype, device: str) -> int:
    """Bytes a logit in dtype at the highest moment of token_losses_, the logit included, where there is no softcap."""
    served = gpu.FLOATS if device == "cuda" else native.FLOATS
    if device in NATIVE_KERNELS["token_loss_"] and dtype in served:
        return dtype.itemsize
    # the reference holds an f32 logit, and the exponential that its normaliser needs
    return 8 if dtype == torch.float32 else dtype.itemsize + 8


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, weights: Tensor | None, shaping: Shaping, objective: Objective
    ) -> Tensor:
        copy_NV, needed = logits.detach().clone(), ctx.needs_input_grad[0]
        losses_N = token_losses_(copy_NV, labels, weights, shaping=shaping, objective=objective, gradient=needed)
        ctx.save_for_backward(copy_NV if needed else None)
        return losses_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_NV,) = ctx.saved_tensors
        grad = None if gradient_NV is None else (gradient_NV * grad_N[:, None]).to(gradient_NV.dtype)
        return grad, None, None, None, None


def _fake(logits: Tensor, *others: Any) -> Tensor:
    return logits.new_empty(logits.shape[0], dtype=torch.promote_types(logits.dtype, torch.float32))


implement_fake("token_loss_", _fake)
