"""Chunked head and cross-entropy in plain PyTorch: the specification, on any torch device.

Axes: N rows, S rows with a label, C rows of one chunk, D model width, V vocabulary.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from lorasmith.errors import FormatError
from lorasmith.ops.precision import product_dtype


@dataclass(frozen=True)
class Objective:
    """What a row's loss is, z its logits and y its label: nll in plain form.

    (1 - s) (lse - z_y) + s (lse - mean z) + c lse^2, lse = logsumexp(z), s = label_smoothing in [0, 1) (as torch's
    cross_entropy has it), c = z_loss >= 0 (PaLM, arXiv 2204.02311, section 5).
    Raises FormatError for values out of range.
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise FormatError(f"label_smoothing={self.label_smoothing} must be from 0 to below 1")
        if not 0 <= self.z_loss < math.inf:
            raise FormatError(f"z_loss={self.z_loss} must be at least 0")

    def losses(self, logits_CV: Tensor, normaliser_C1: Tensor, labels_C1: Tensor) -> Tensor:
        """The loss of each row [C, 1]."""
        losses_C1 = normaliser_C1 - (1 - self.label_smoothing) * logits_CV.gather(1, labels_C1)
        if self.label_smoothing:
            losses_C1 = losses_C1 - self.label_smoothing * logits_CV.mean(1, keepdim=True)
        return losses_C1 + self.z_loss * normaliser_C1.square() if self.z_loss else losses_C1

    def gradient_(self, logits_CV: Tensor, normaliser_C1: Tensor, labels_C1: Tensor) -> Tensor:
        """The gradient of each row's loss, written over its logits."""
        gradient_CV = logits_CV.sub_(normaliser_C1).exp_()
        if self.z_loss:
            gradient_CV.mul_(1 + 2 * self.z_loss * normaliser_C1)
        if self.label_smoothing:
            gradient_CV.sub_(self.label_smoothing / gradient_CV.shape[1])
        return gradient_CV.scatter_add_(1, labels_C1, torch.full_like(normaliser_C1, self.label_smoothing - 1))

    def summed(self, logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """The loss of rows of logits [C, V] under labels [C], each weighed by weights [C], summed; at least f32."""
        logits_CV = logits.to(_wide(logits.dtype))
        losses_C1 = self.losses(logits_CV, logits_CV.logsumexp(1, keepdim=True), labels[:, None])
        return (losses_C1 if weights is None else losses_C1 * weights[:, None]).sum()


@dataclass(frozen=True)
class Form:
    """How logits are shaped, how many rows of them exist at once, and what is asked of them."""

    softcap: float | None
    scale: float
    chunk: int
    objective: Objective = Objective()

    def shape_(self, logits: Tensor) -> Tensor:
        """Scale and cap logits in place."""
        logits.mul_(self.scale)
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits

    def shaped(self, logits: Tensor) -> Tensor:
        """Scale and cap logits into a new tensor."""
        logits = logits * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def chunks(self, rows: int) -> Iterator[slice]:
        """Slices that cover rows."""
        return (slice(start, start + self.chunk) for start in range(0, rows, self.chunk))


@dataclass(frozen=True)
class Rows:
    """The rows of hidden that have a label."""

    labels: Tensor  # [S]
    index: Tensor  # [S], their numbers
    weights: Tensor | None  # [S], what each loss counts


@dataclass
class _Gradients:
    """What the forward has made for the backward; None where no gradient is asked for."""

    hidden_SD: Tensor | None
    weight_VD: Tensor | None
    bias_V: Tensor | None

    def add_(self, rows: slice, logits_CV: Tensor, hidden_CD: Tensor, weight: Tensor) -> None:
        """Add what the gradient to one chunk's raw logits gives; weight is in the type of the product."""
        low = logits_CV.to(weight.dtype)
        if self.hidden_SD is not None:
            self.hidden_SD[rows] = low @ weight
        if self.weight_VD is not None:
            # the running sum over chunks is at least f32; one chunk's product is in the weight's own dtype
            self.weight_VD += low.T @ hidden_CD
        if self.bias_V is not None:
            self.bias_V += logits_CV.sum(0)


def linear_nll(hidden: Tensor, weight: Tensor, bias: Tensor | None, rows: Rows, form: Form) -> Tensor:
    """Summed loss of the rows of hidden [N, D] under weight [V, D]."""
    with torch.autocast(hidden.device.type, enabled=False):
        if torch.is_grad_enabled():
            return _LinearNLL.apply(hidden, weight, bias, rows, form)
        return _linear_forward(hidden, weight, bias, rows, form, (False, False, False))[0]


def head_nll(hidden: Tensor, head: Callable[[Tensor], Tensor], rows: Rows, form: Form) -> Tensor:
    """Summed loss of the rows of hidden [N, D] under any head; logits are made again in the backward."""

    def chunk_nll(hidden_CD: Tensor, labels_C: Tensor, weights_C: Tensor | None) -> Tensor:
        logits_CV = head(hidden_CD)
        return form.objective.summed(form.shaped(logits_CV.to(_wide(logits_CV.dtype))), labels_C, weights_C)

    hidden_SD = hidden.index_select(0, rows.index)
    # the empty sum still hangs on hidden, so that a batch without labels has a zero gradient and not none
    total = hidden_SD[:0].to(_wide(hidden.dtype)).sum()
    for chunk in form.chunks(len(rows.index)):
        weights_C = None if rows.weights is None else rows.weights[chunk]
        total = total + checkpoint(chunk_nll, hidden_SD[chunk], rows.labels[chunk], weights_C, use_reentrant=False)
    return total


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _linear_forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: Rows,
    form: Form,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor, _Gradients]:
    wide = _wide(weight.dtype)
    total = torch.zeros((), dtype=wide, device=hidden.device)
    gradients = _Gradients(
        hidden.new_empty(len(rows.index), hidden.shape[1]) if needs[0] else None,
        torch.zeros_like(weight, dtype=wide) if needs[1] else None,
        torch.zeros_like(bias, dtype=wide) if needs[2] and bias is not None else None,
    )
    factor_VD = weight.to(product_dtype(weight.dtype, weight.device))
    low_bias = None if bias is None else bias.to(factor_VD.dtype)
    for chunk in form.chunks(len(rows.index)):
        hidden_CD = hidden.index_select(0, rows.index[chunk]).to(factor_VD.dtype)
        raw_CV = F.linear(hidden_CD, factor_VD, low_bias)
        # .to keeps an f32 product as it is, and the shaping then works in place
        logits_CV = form.shape_(raw_CV.to(wide))
        labels_C1 = rows.labels[chunk, None]
        weights_C1 = None if rows.weights is None else rows.weights[chunk, None]
        normaliser_C1 = logits_CV.logsumexp(1, keepdim=True)
        losses_C1 = form.objective.losses(logits_CV, normaliser_C1, labels_C1)
        total += (losses_C1 if weights_C1 is None else losses_C1 * weights_C1).sum()
        if any(needs):
            gradient_CV = _to_raw_logits(logits_CV, normaliser_C1, labels_C1, form)
            if weights_C1 is not None:
                gradient_CV.mul_(weights_C1)
            gradients.add_(chunk, gradient_CV, hidden_CD, factor_VD)
    return total, gradients


def _to_raw_logits(logits_CV: Tensor, normaliser_C1: Tensor, labels_C1: Tensor, form: Form) -> Tensor:
    """Gradient of each row's loss to the head's own output, through cap and scale."""
    slope_CV = None if form.softcap is None else 1 - (logits_CV / form.softcap).square_()
    gradient_CV = form.objective.gradient_(logits_CV, normaliser_C1, labels_C1)
    if slope_CV is not None:
        gradient_CV.mul_(slope_CV)
    return gradient_CV.mul_(form.scale)


class _LinearNLL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        rows: Rows,
        form: Form,
    ) -> Tensor:
        total, made = _linear_forward(hidden, weight, bias, rows, form, ctx.needs_input_grad[:3])
        ctx.save_for_backward(made.hidden_SD, made.weight_VD, made.bias_V, rows.index)
        ctx.rows = hidden.shape[0]
        ctx.dtypes = (weight.dtype, None if bias is None else bias.dtype)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        hidden_SD, weight_VD, bias_V, index = ctx.saved_tensors
        hidden = None
        if hidden_SD is not None:
            hidden = hidden_SD.new_zeros(ctx.rows, hidden_SD.shape[1])
            hidden.index_copy_(0, index, (hidden_SD * scale).to(hidden_SD.dtype))
        weight = None if weight_VD is None else (weight_VD * scale).to(ctx.dtypes[0])
        bias = None if bias_V is None else (bias_V * scale).to(ctx.dtypes[1])
        return hidden, weight, bias, None, None
