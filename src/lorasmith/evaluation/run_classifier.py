"""Scoring a classifier. Axes: B rows, C classes."""

from collections.abc import Iterable

import numpy as np
import torch.nn.functional as F
from torch import nn

from lorasmith.data import Batch
from lorasmith.errors import DataError
from lorasmith.evaluation.estimate import FloatArray
from lorasmith.evaluation.evaluating import evaluating
from lorasmith.evaluation.outcomes import Classified, IntArray
from lorasmith.evaluation.scores import Scores, score


def evaluate_classifier(model: nn.Module, batches: Iterable[Batch]) -> Scores:
    """Loss, accuracy, F1 (macro; of class 1 for two classes) and F1 by class of model on batches (on its device).

    The model is scored in evaluation mode and left in the modes that it had.
    Raises DataError for no examples, or a label that is no class of the model.
    """
    with evaluating(model):
        parts = [_score_batch(model, batch) for batch in batches]
    if not parts:
        raise DataError("there are no examples to score; check the validation data")
    target, chosen, nll = (np.concatenate(columns) for columns in list(zip(*parts))[:3])
    return score(Classified(target, chosen, nll, parts[0][3]))


def _score_batch(model: nn.Module, batch: Batch) -> tuple[IntArray, IntArray, FloatArray, int]:
    logits_BC = model(**batch.model_inputs()).logits.float()
    classes = logits_BC.shape[-1]
    if batch.labels.shape != logits_BC.shape[:1]:
        raise DataError(
            f"{tuple(batch.labels.shape)} labels do not fit {tuple(logits_BC.shape)} logits; "
            "classification needs one class id for each row"
        )
    low, high = int(batch.labels.min()), int(batch.labels.max())
    if low < 0 or high >= classes:
        raise DataError(
            f"label {low if low < 0 else high} is no class of a model with {classes}; fix the labels, or load the "
            f"model with num_labels={high + 1}"
        )
    nll_B = F.cross_entropy(logits_BC, batch.labels, reduction="none")
    chosen_B = logits_BC.argmax(-1)
    return batch.labels.cpu().numpy(), chosen_B.cpu().numpy(), nll_B.double().cpu().numpy(), classes
