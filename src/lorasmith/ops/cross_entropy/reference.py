"""Chunked head and cross-entropy in plain PyTorch: the specification, on any torch device.

Axes: N rows, S rows with a label, C rows of one chunk, D model width, V vocabulary.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from lorasmith.ops.precision import product_dtype


@dataclass(frozen=True)
class Form:
    """How logits are shaped, and how many rows of them exist at once."""

    softcap: float | None
    scale: float
    chunk: int

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


def linear_nll(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, index: Tensor, form: Form
) -> Tensor:
    """Summed nll of rows index of hidden [N, D] under weight [V, D]; labels [S]."""
    with torch.autocast(hidden.device.type, enabled=False):
        if torch.is_grad_enabled():
            return _LinearNLL.apply(hidden, weight, bias, labels, index, form)
        return _linear_forward(hidden, weight, bias, labels, index, form, (False, False, False))[0]


def head_nll(hidden: Tensor, head: Callable[[Tensor], Tensor], labels: Tensor, index: Tensor, form: Form) -> Tensor:
    """Summed nll of rows index of hidden [N, D] under any head; logits are made again in the backward."""

    def chunk_nll(hidden_CD: Tensor, labels_C: Tensor) -> Tensor:
        logits_CV = head(hidden_CD)
        logits_CV = form.shaped(logits_CV.to(_wide(logits_CV.dtype)))
        return F.cross_entropy(logits_CV, labels_C, reduction="sum")

    hidden_SD = hidden.index_select(0, index)
    # the empty sum still hangs on hidden, so that a batch without labels has a zero gradient and not none
    total = hidden_SD[:0].to(_wide(hidden.dtype)).sum()
    for rows in form.chunks(len(index)):
        total = total + checkpoint(chunk_nll, hidden_SD[rows], labels[rows], use_reentrant=False)
    return total


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _linear_forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    index: Tensor,
    form: Form,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor, _Gradients]:
    wide = _wide(weight.dtype)
    total = torch.zeros((), dtype=wide, device=hidden.device)
    gradients = _Gradients(
        hidden.new_empty(len(index), hidden.shape[1]) if needs[0] else None,
        torch.zeros_like(weight, dtype=wide) if needs[1] else None,
        torch.zeros_like(bias, dtype=wide) if needs[2] and bias is not None else None,
    )
    factor_VD = weight.to(product_dtype(weight.dtype, weight.device))
    low_bias = None if bias is None else bias.to(factor_VD.dtype)
    for rows in form.chunks(len(index)):
        hidden_CD = hidden.index_select(0, index[rows]).to(factor_VD.dtype)
        raw_CV = F.linear(hidden_CD, factor_VD, low_bias)
        # .to keeps an f32 product as it is, and the shaping then works in place
        logits_CV = form.shape_(raw_CV.to(wide))
        labels_C1 = labels[rows, None]
        normaliser_C1 = logits_CV.logsumexp(1, keepdim=True)
        total += (normaliser_C1 - logits_CV.gather(1, labels_C1)).sum()
        if any(needs):
            gradients.add_(rows, _to_raw_logits(logits_CV, normaliser_C1, labels_C1, form), hidden_CD, factor_VD)
    return total, gradients


def _to_raw_logits(logits_CV: Tensor, normaliser_C1: Tensor, labels_C1: Tensor, form: Form) -> Tensor:
    """Gradient of the chunk's nll to the head's own output: softmax minus one-hot, through cap and scale."""
    slope_CV = None if form.softcap is None else 1 - (logits_CV / form.softcap).square_()
    gradient_CV = logits_CV.sub_(normaliser_C1).exp_()
    gradient_CV.scatter_add_(1, labels_C1, torch.full_like(normaliser_C1, -1.0))
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
        labels: Tensor,
        index: Tensor,
        form: Form,
    ) -> Tensor:
        total, made = _linear_forward(hidden, weight, bias, labels, index, form, ctx.needs_input_grad[:3])
        ctx.save_for_backward(made.hidden_SD, made.weight_VD, made.bias_V, index)
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
        return hidden, weight, bias, None, None, None
