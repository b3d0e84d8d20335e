"""Scoring next-token prediction without keeping logits.

Axes: B rows, T tokens, N = B * T positions, S segments or rows, D width, V vocabulary.
"""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorasmith.data import Batch
from lorasmith.errors import DataError
from lorasmith.evaluation.estimate import FloatArray
from lorasmith.evaluation.evaluating import evaluating
from lorasmith.evaluation.outcomes import Predicted
from lorasmith.evaluation.scores import Scores, score
from lorasmith.models.head import Head, next_token_targets, split_head
from lorasmith.ops.cross_entropy import IGNORED


def evaluate_causal(model: nn.Module, batches: Iterable[Batch]) -> Scores:
    """Loss and perplexity of model on batches (on its device), an example being a segment or a row.

    Logits exist for one chunk of scored positions at a time; for a model whose head cannot be split off, for one batch.
    The model is scored in evaluation mode and left in the modes that it had.
    Raises DataError where no token has a label.
    """
    with evaluating(model):
        head = split_head(model)
        parts = [_score_batch(model, head, batch) for batch in batches]
    parts = [(nll, tokens) for nll, tokens in parts if len(nll)]
    if not parts:
        raise DataError("no token of the validation data has a label to score; check loss_on and max_length")
    return score(Predicted(*(np.concatenate(columns) for columns in zip(*parts))))


def _score_batch(model: nn.Module, head: Head | None, batch: Batch) -> tuple[FloatArray, FloatArray]:
    """Summed nll [S] and scored tokens [S] of the segments or rows that have any."""
    targets_BT = next_token_targets(batch.labels, batch.cu_seqlens)
    scored_BT = targets_BT != IGNORED
    targets_N = targets_BT[scored_BT]
    nll_N = _whole_nll(model, batch, scored_BT, targets_N) if head is None else _nll(head, batch, scored_BT, targets_N)
    owner_N = _owners(batch)[scored_BT].cpu()
    tokens_S = torch.bincount(owner_N)
    nll_S = torch.zeros(len(tokens_S), dtype=torch.float64).index_add_(0, owner_N, nll_N.cpu().double())
    kept_S = tokens_S > 0
    return nll_S[kept_S].numpy(), tokens_S[kept_S].double().numpy()


def _nll(head: Head, batch: Batch, scored_BT: Tensor, targets_N: Tensor) -> Tensor:
    hidden_BTD = head.backbone(**batch.model_inputs(), use_cache=False).last_hidden_state
    # soft prompts come first and have no labels
    hidden_ND = hidden_BTD[:, -scored_BT.shape[1] :][scored_BT]
    return head.token_nll(hidden_ND, targets_N)


def _whole_nll(model: nn.Module, batch: Batch, scored_BT: Tensor, targets_N: Tensor) -> Tensor:
    logits_BTV = model(**batch.model_inputs(), use_cache=False).logits
    logits_NV = logits_BTV[:, -scored_BT.shape[1] :][scored_BT]
    return F.cross_entropy(logits_NV.float(), targets_N, reduction="none")


def _owners(batch: Batch) -> Tensor:
    """The segment or row [B, T] that each position belongs to."""
    rows, tokens = batch.labels.shape
    if batch.cu_seqlens is None:
        return torch.arange(rows, device=batch.labels.device)[:, None].expand(rows, tokens)
    positions = torch.arange(tokens, device=batch.labels.device)
    ends = batch.cu_seqlens[1:].to(positions.device, torch.long)
    return torch.searchsorted(ends, positions, right=True)[None]
