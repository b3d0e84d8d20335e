"""Arguments, checks, shapes and gradients of the two cross-entropy operations.

logits = cap(scale * (h W^T + b)), cap(z) = softcap * tanh(z / softcap), nll = sum over rows of -log softmax(logits)[y].
Axes: N rows (tokens), S rows with a label, D model width, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lorasmith.errors import DataError, FormatError
from lorasmith.ops.cross_entropy import reference

IGNORED = -100
"""The label of a row that carries no loss."""

_CHUNK_ELEMENTS = 1 << 24
"""Logits kept at once when no chunk is given: 64 MiB in f32."""


@dataclass(frozen=True)
class _Rows:
    hidden: Tensor  # [N, D]
    labels: Tensor  # [S]
    index: Tensor  # [S], the rows of hidden that have a label


def linear_cross_entropy(
    hidden: Tensor,
    head_weight: Tensor,
    labels: Tensor,
    *,
    head_bias: Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    chunk: int | None = None,
) -> tuple[Tensor, int]:
    """Sum of the negative log likelihoods of the labelled rows, and their number.

    hidden [..., D], head_weight [V, D], head_bias [V], labels int64 [...] with one label a row of hidden, already
    shifted; -100 carries no loss and costs nothing. chunk is how many rows have logits at once (by default as many as
    fill 64 MiB in f32). The sum is an f32 scalar (f64 for f64 input); its gradients to hidden, and to weight and bias
    where those require one, are made on the way, so that no logits are kept. Softmax and sum are at least f32.
    Raises DataError for a label outside the vocabulary, FormatError for shapes that do not fit.
    """
    if head_weight.dim() != 2 or head_weight.shape[1] != hidden.shape[-1]:
        raise FormatError(
            f"head weight {tuple(head_weight.shape)} does not fit hidden {tuple(hidden.shape)}; it must be [V, D]"
        )
    vocabulary = head_weight.shape[0]
    rows = _supervised(hidden, labels)
    _check_labels(rows.labels, vocabulary)
    form = reference.Form(softcap, scale, chunk or _chunk(vocabulary))
    nll = reference.linear_nll(rows.hidden, head_weight, head_bias, rows.labels, rows.index, form)
    return nll, rows.labels.numel()


def head_cross_entropy(
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    labels: Tensor,
    *,
    vocabulary: int,
    softcap: float | None = None,
    scale: float = 1.0,
    chunk: int | None = None,
) -> tuple[Tensor, int]:
    """As linear_cross_entropy, for a head that is any callable [rows, D] -> [rows, V] (adapted, quantized).

    Each chunk's logits are made once in the forward and once more in the backward; parameters inside the head get
    their gradients in the ordinary way.
    """
    rows = _supervised(hidden, labels)
    _check_labels(rows.labels, vocabulary)
    form = reference.Form(softcap, scale, chunk or _chunk(vocabulary))
    return reference.head_nll(rows.hidden, head, rows.labels, rows.index, form), rows.labels.numel()


def _supervised(hidden: Tensor, labels: Tensor) -> _Rows:
    if labels.shape != hidden.shape[:-1]:
        raise FormatError(
            f"labels {tuple(labels.shape)} do not fit hidden {tuple(hidden.shape)}; give one label for each row"
        )
    flat = labels.reshape(-1)
    index = (flat != IGNORED).nonzero().squeeze(1)
    return _Rows(hidden.reshape(-1, hidden.shape[-1]), flat[index], index)


def _check_labels(labels: Tensor, vocabulary: int) -> None:
    if labels.numel() == 0:
        return
    low, high = torch.aminmax(labels)
    for label in (int(low), int(high)):
        if not 0 <= label < vocabulary:
            raise DataError(
                f"label {label} is outside the vocabulary of {vocabulary}; use the model's own tokenizer, "
                f"or resize its embeddings, or {IGNORED} for no loss"
            )


def _chunk(vocabulary: int) -> int:
    return max(1, _CHUNK_ELEMENTS // vocabulary)
