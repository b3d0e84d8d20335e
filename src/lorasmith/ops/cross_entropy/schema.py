"""Arguments and checks of the head's cross-entropy: of a plain linear head, and of any other.

logits = cap(scale * (h W^T + b)), cap(z) = softcap * tanh(z / softcap), nll = sum over rows of -log softmax(logits)[y],
or what the objective says instead (ops/token_loss).
Axes: N rows (tokens), S rows with a label, D model width, V vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lorasmith.errors import DataError, FormatError
from lorasmith.ops.cross_entropy import chunked
from lorasmith.ops.cross_entropy.chunked import Form, Rows
from lorasmith.ops.token_loss.schema import PLAIN, Objective, Shaping, stray_label

IGNORED = -100
"""The label of a row that carries no loss."""

_CHUNK_ELEMENTS = 1 << 24
"""Logits that exist at once on a CPU when no chunk is given: 64 MiB in f32."""

_ACCELERATOR_CHUNK_ELEMENTS = 1 << 27
"""The same elsewhere, 256 MiB in 16 bits: each chunk reads the head twice, which 512 rows or more make up for."""


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
    shifted; -100 carries no loss and costs nothing. chunk is how many rows have logits at once (see
    default_chunk). weights [...], one a label, multiply the losses of their rows; they get no gradient and do not
    change the number. The sum is an f32 scalar (f64 for f64 input); its gradients to hidden, and to weight and bias
    where those require one, are made on the way, so that no logits are kept. Softmax and sum are at least f32.
    Raises DataError for a label outside the vocabulary, FormatError for shapes that do not fit.
    """
    _check_weight(head_weight, hidden)
    form = _form(softcap, scale, objective, chunk, hidden, len(head_weight))
    hidden_ND, rows = _supervised(hidden, labels, weights, len(head_weight))
    nll = chunked.linear_nll(hidden_ND, head_weight, head_bias, rows, form)
    return nll, rows.labels.numel()


def linear_token_losses(
    hidden: Tensor,
    head_weight: Tensor,
    labels: Tensor,
    *,
    head_bias: Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    chunk: int | None = None,
) -> Tensor:
    """The negative log likelihood of each labelled row, in order, at least f32; arguments as linear_cross_entropy's.

    For evaluation: without gradients.
    """
    _check_weight(head_weight, hidden)
    form = _form(softcap, scale, PLAIN, chunk, hidden, len(head_weight))
    hidden_ND, rows = _supervised(hidden, labels, None, len(head_weight))
    return chunked.linear_losses(hidden_ND, head_weight, head_bias, rows, form)


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
    form = _form(softcap, scale, objective, chunk, hidden, vocabulary)
    hidden_ND, rows = _supervised(hidden, labels, weights, vocabulary)
    return chunked.head_nll(hidden_ND, head, rows, form), rows.labels.numel()


def head_token_losses(
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    labels: Tensor,
    *,
    vocabulary: int,
    softcap: float | None = None,
    scale: float = 1.0,
    chunk: int | None = None,
) -> Tensor:
    """As linear_token_losses, for a head that is any callable [rows, D] -> [rows, V]."""
    form = _form(softcap, scale, PLAIN, chunk, hidden, vocabulary)
    hidden_ND, rows = _supervised(hidden, labels, None, vocabulary)
    with torch.no_grad():
        parts = list(chunked.head_losses(hidden_ND, head, rows, form))
    return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.promote_types(hidden.dtype, torch.float32))


def default_chunk(vocabulary: int, device: torch.device) -> int:
    """Rows of logits that exist at once on device when no chunk is given."""
    return max(1, (_CHUNK_ELEMENTS if device.type == "cpu" else _ACCELERATOR_CHUNK_ELEMENTS) // vocabulary)


def _check_weight(weight: Tensor, hidden: Tensor) -> None:
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[-1]:
        raise FormatError(
            f"head weight {tuple(weight.shape)} does not fit hidden {tuple(hidden.shape)}; it must be [V, D]"
        )


def _form(
    softcap: float | None, scale: float, objective: Objective, chunk: int | None, hidden: Tensor, vocabulary: int
) -> Form:
    return Form(Shaping(softcap, scale), objective, chunk or default_chunk(vocabulary, hidden.device))


def _supervised(hidden: Tensor, labels: Tensor, weights: Tensor | None, vocabulary: int) -> tuple[Tensor, Rows]:
    """hidden with one leading axis, and its rows that have a label."""
    if labels.shape != hidden.shape[:-1]:
        raise FormatError(
            f"labels {tuple(labels.shape)} do not fit hidden {tuple(hidden.shape)}; give one label for each row"
        )
    if weights is not None and weights.shape != labels.shape:
        raise FormatError(f"weights {tuple(weights.shape)} do not fit labels {tuple(labels.shape)}; give one for each")
    flat = labels.reshape(-1).long()
    index = (flat != IGNORED).nonzero().squeeze(1)
    rows = Rows(flat[index], index, None if weights is None else weights.detach().reshape(-1)[index])
    stray = stray_label(rows.labels, vocabulary)
    if stray is not None:
        raise DataError(
            f"label {stray} is outside the vocabulary of {vocabulary}; use the model's own tokenizer, "
            f"or resize its embeddings, or {IGNORED} for no loss"
        )
    return hidden.reshape(-1, hidden.shape[-1]), rows
