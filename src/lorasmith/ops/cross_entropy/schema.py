"""Arguments, checks, shapes and gradients of the two cross-entropy operations.

logits = cap(scale * (h W^T + b)), cap(z) = softcap * tanh(z / softcap), nll = sum over rows of -log softmax(logits)[y],
or what the objective says instead.
Axes: N rows (tokens), S rows with a label, D model width, V vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lorasmith.errors import DataError, FormatError
from lorasmith.ops.cross_entropy import reference
from lorasmith.ops.cross_entropy.reference import Objective, Rows

IGNORED = -100
"""The label of a row that carries no loss."""

PLAIN = Objective()
"""The negative log likelihood and nothing else."""

_CHUNK_ELEMENTS = 1 << 24
"""Logits kept at once when no chunk is given: 64 MiB in f32."""


def linear_cross_entropy(
    hidden: Tensor,
    head_weight: Tensor,
    labels: Tensor,
    *,
    head_bias: Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    chunk: int | None = None,
    objective: Objective = PLAIN,
    weights: Tensor | None = None,
) -> tuple[Tensor, int]:
    """Sum of the negative log likelihoods of the labelled rows, and their number.

    hidden [..., D], head_weight [V, D], head_bias [V], labels int64 [...] with one label a row of hidden, already
    shifted; -100 carries no loss and costs nothing. chunk is how many rows have logits at once (by default as many as
    fill 64 MiB in f32). weights [...], one a label, multiply the losses of their rows; they get no gradient and do not
    change the number. The sum is an f32 scalar (f64 for f64 input); its gradients to hidden, and to weight and bias
    where those require one, are made on the way, so that no logits are kept. Softmax and sum are at least f32.
    Raises DataError for a label outside the vocabulary, FormatError for shapes that do not fit.
    """
    if head_weight.dim() != 2 or head_weight.shape[1] != hidden.shape[-1]:
        raise FormatError(
            f"head weight {tuple(head_weight.shape)} does not fit hidden {tuple(hidden.shape)}; it must be [V, D]"
        )
    vocabulary = head_weight.shape[0]
    rows = _supervised(hidden, labels, weights)
    _check_labels(rows.labels, vocabulary)
    form = reference.Form(softcap, scale, chunk or _chunk(vocabulary), objective)
    nll = reference.linear_nll(hidden.reshape(-1, hidden.shape[-1]), head_weight, head_bias, rows, form)
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
    objective: Objective = PLAIN,
    weights: Tensor | None = None,
) -> tuple[Tensor, int]:
    """As linear_cross_entropy, for a head that is any callable [rows, D] -> [rows, V] (adapted, quantized).

    Each chunk's logits are made once in the forward and once more in the backward; parameters inside the head get
    their gradients in the ordinary way.
    """
    rows = _supervised(hidden, labels, weights)
    _check_labels(rows.labels, vocabulary)
    form = reference.Form(softcap, scale, chunk or _chunk(vocabulary), objective)
    return reference.head_nll(hidden.reshape(-1, hidden.shape[-1]), head, rows, form), rows.labels.numel()


def _supervised(hidden: Tensor, labels: Tensor, weights: Tensor | None) -> Rows:
    if labels.shape != hidden.shape[:-1]:
        raise FormatError(
            f"labels {tuple(labels.shape)} do not fit hidden {tuple(hidden.shape)}; give one label for each row"
        )
    if weights is not None and weights.shape != labels.shape:
        raise FormatError(f"weights {tuple(weights.shape)} do not fit labels {tuple(labels.shape)}; give one for each")
    flat = labels.reshape(-1)
    index = (flat != IGNORED).nonzero().squeeze(1)
    return Rows(flat[index], index, None if weights is None else weights.detach().reshape(-1)[index])


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
