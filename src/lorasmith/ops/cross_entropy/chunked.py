"""Head and cross-entropy by chunks of rows: a product, the losses, the gradient in the logits' place, products back.

Where the processor has no instructions for the weight's type, a chunk goes through the vocabulary in tiles that are
widened into a buffer, so that no wide copy of a whole head exists.
Axes: N rows, S rows with a label, C rows of one chunk, D model width, V vocabulary, W a tile of the vocabulary.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from lorasmith.ops.precision import product_dtype
from lorasmith.ops.scratch import borrowed
from lorasmith.ops.token_loss.schema import Objective, Shaping, differentiable_losses, loss_bytes, token_losses_

TILE_ELEMENTS = 1 << 22
"""Of a head's weight that are widened at once: 16 MiB in f32."""


@dataclass(frozen=True)
class Form:
    """What is asked of the logits, and how many rows of them exist at once."""

    shaping: Shaping
    objective: Objective
    chunk: int

    def chunks(self, rows: int) -> Iterator[slice]:
        """Slices that cover rows, of nearly one size: a product of few rows reads the head as long as one of many."""
        size = -(-rows // max(1, -(-rows // self.chunk)))
        return (slice(start, min(start + size, rows)) for start in range(0, rows, max(1, size)))


@dataclass(frozen=True)
class Rows:
    """The rows of hidden that have a label."""

    labels: Tensor  # [S]
    index: Tensor  # [S], their numbers
    weights: Tensor | None  # [S], what each loss counts


def _tile_rows(vocabulary: int, width: int) -> int:
    """Rows of a head's weight that are widened at once."""
    return min(vocabulary, max(1, TILE_ELEMENTS // width))


@dataclass(frozen=True)
class _Factor:
    """A head's weight [V, D] in the type of its product."""

    weight_VD: Tensor
    dtype: torch.dtype

    def tiles(self) -> Iterator[tuple[slice, Tensor]]:
        """Rows of the weight, and those rows [W, D] until the next are asked for."""
        vocabulary, width = self.weight_VD.shape
        if self.dtype == self.weight_VD.dtype:
            yield slice(0, vocabulary), self.weight_VD
            return
        most = _tile_rows(vocabulary, width)
        with borrowed((most, width), self.dtype, self.weight_VD.device) as buffer:
            for start in range(0, vocabulary, most):
                part_WD = self.weight_VD[start : start + most]
                yield slice(start, start + len(part_WD)), buffer[: len(part_WD)].copy_(part_WD)

    def product_(self, hidden_CD: Tensor, bias_V: Tensor | None, logits_CV: Tensor) -> None:
        """Fill logits_CV."""
        for columns, tile_WD in self.tiles():
            if bias_V is None:
                torch.mm(hidden_CD, tile_WD.T, out=logits_CV[:, columns])
            else:
                torch.addmm(bias_V[columns], hidden_CD, tile_WD.T, out=logits_CV[:, columns])

    def product_back(self, gradient_CV: Tensor) -> Tensor:
        """The gradient to hidden [C, D]."""
        total_CD: Tensor | None = None
        for columns, tile_WD in self.tiles():
            part_CW = gradient_CV[:, columns]
            total_CD = part_CW @ tile_WD if total_CD is None else total_CD.addmm_(part_CW, tile_WD)
        assert total_CD is not None
        return total_CD


@dataclass
class _Gradients:
    """What the forward has made for the backward; None where no gradient is asked for."""

    hidden_SD: Tensor | None
    weight_VD: Tensor | None
    bias_V: Tensor | None

    def add_(self, rows: slice, gradient_CV: Tensor, hidden_CD: Tensor, factor: _Factor) -> None:
        """Add what the gradient to one chunk's logits gives."""
        if self.hidden_SD is not None:
            self.hidden_SD[rows] = factor.product_back(gradient_CV)
        if self.weight_VD is not None:
            # the running sum over chunks is at least f32; one chunk's product is in the product's own dtype
            self.weight_VD += gradient_CV.T @ hidden_CD
        if self.bias_V is not None:
            self.bias_V += gradient_CV.sum(0, dtype=self.bias_V.dtype)


def linear_workspace(rows: int, vocabulary: int, width: int, dtype: torch.dtype, device: torch.device) -> int:
    """Bytes that rows of logits need at their highest moment under a linear head of dtype."""
    product = product_dtype(dtype, device)
    tile = 0 if product == dtype else _tile_rows(vocabulary, width) * width * product.itemsize
    return rows * vocabulary * loss_bytes(product, device.type) + tile


def module_workspace(rows: int, vocabulary: int, dtype: torch.dtype, device: torch.device) -> int:
    """Bytes that rows of logits in dtype need at their highest moment under a head that is any module."""
    # forward: the module's logits and their copy; backward: the gradient, its f32 multiple, that in the logits' type
    backward = dtype.itemsize + 4 + (0 if dtype == torch.float32 else dtype.itemsize)
    return rows * vocabulary * max(dtype.itemsize + loss_bytes(dtype, device.type), backward)


def linear_losses(hidden: Tensor, weight: Tensor, bias: Tensor | None, rows: Rows, form: Form) -> Tensor:
    """Losses [S] of the rows of hidden [N, D] under weight [V, D], without gradients."""
    with torch.autocast(hidden.device.type, enabled=False), torch.no_grad():
        return _linear_forward(hidden, weight, bias, rows, form, (False, False, False))[0]


def linear_nll(hidden: Tensor, weight: Tensor, bias: Tensor | None, rows: Rows, form: Form) -> Tensor:
    """Summed loss of the rows of hidden [N, D] under weight [V, D]."""
    if not torch.is_grad_enabled():
        return linear_losses(hidden, weight, bias, rows, form).sum()
    with torch.autocast(hidden.device.type, enabled=False):
        return _LinearNLL.apply(hidden, weight, bias, rows, form)


def head_losses(hidden: Tensor, head: Callable[[Tensor], Tensor], rows: Rows, form: Form) -> Iterator[Tensor]:
    """Losses [C] of each chunk of the rows of hidden [N, D] under any head; logits are made again in the backward."""

    def losses_of(hidden_CD: Tensor, labels_C: Tensor, weights_C: Tensor | None) -> Tensor:
        return differentiable_losses(head(hidden_CD), labels_C, weights_C, form.shaping, form.objective)

    hidden_SD = hidden.index_select(0, rows.index)
    for chunk in form.chunks(len(rows.index)):
        weights_C = None if rows.weights is None else rows.weights[chunk]
        yield checkpoint(losses_of, hidden_SD[chunk], rows.labels[chunk], weights_C, use_reentrant=False)


def head_nll(hidden: Tensor, head: Callable[[Tensor], Tensor], rows: Rows, form: Form) -> Tensor:
    """Summed loss of the rows of hidden [N, D] under any head."""
    # the empty sum hangs on hidden, so that a batch without labels has a zero gradient and not none
    total = hidden[:0].to(torch.promote_types(hidden.dtype, torch.float32)).sum()
    for losses_C in head_losses(hidden, head, rows, form):
        total = total + losses_C.sum()
    return total


def _logits(rows: int, vocabulary: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uninitialised logits [rows, vocabulary], on an accelerator with rows that begin on whole 16 elements.

    There odd rows, as of GPT-2's 50,257, send matrix products into kernels that read element by element.
    """
    stride = vocabulary if device.type == "cpu" else -(-vocabulary // 16) * 16
    return torch.empty(rows, stride, dtype=dtype, device=device)[:, :vocabulary]


def _linear_forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: Rows,
    form: Form,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor, _Gradients]:
    wide = torch.promote_types(weight.dtype, torch.float32)
    supervised, vocabulary = len(rows.index), len(weight)
    losses_S = torch.empty(supervised, dtype=wide, device=hidden.device)
    gradients = _Gradients(
        hidden.new_empty(supervised, hidden.shape[1]) if needs[0] else None,
        torch.zeros_like(weight, dtype=wide) if needs[1] else None,
        torch.zeros_like(bias, dtype=wide) if needs[2] and bias is not None else None,
    )
    factor = _Factor(weight, product_dtype(weight.dtype, weight.device))
    low_bias = None if bias is None else bias.to(factor.dtype)
    buffer = _logits(min(form.chunk, supervised), vocabulary, factor.dtype, hidden.device)
    asked: Any = {"shaping": form.shaping, "objective": form.objective, "gradient": any(needs)}
    for chunk in form.chunks(supervised):
        hidden_CD = hidden.index_select(0, rows.index[chunk]).to(factor.dtype)
        logits_CV = buffer[: len(hidden_CD)]
        factor.product_(hidden_CD, low_bias, logits_CV)
        weights_C = None if rows.weights is None else rows.weights[chunk]
        losses_S[chunk] = token_losses_(logits_CV, rows.labels[chunk], weights_C, **asked)
        if any(needs):
            gradients.add_(chunk, logits_CV, hidden_CD, factor)
    return losses_S, gradients


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
        losses_S, made = _linear_forward(hidden, weight, bias, rows, form, ctx.needs_input_grad[:3])
        ctx.save_for_backward(made.hidden_SD, made.weight_VD, made.bias_V, rows.index)
        ctx.rows = hidden.shape[0]
        ctx.dtypes = (weight.dtype, None if bias is None else bias.dtype)
        return losses_S.sum()

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
