"""Scores of a model on held-out examples, as the recipes need them."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import nn

from lorasmith.data import Batch, Loader
from lorasmith.evaluation import Scores, evaluate_causal, evaluate_classifier

Score = Callable[[], Scores]


def scorer(model: nn.Module, loader: Loader, task: str, max_batches: int | None = None) -> Score:
    """A function that scores model as it stands, in evaluation mode, on one pass over loader."""

    def score() -> Scores:
        training = model.training
        model.eval()
        try:
            with torch.no_grad():
                evaluate = evaluate_causal if task == "causal" else evaluate_classifier
                return evaluate(model, _batches(loader, max_batches, model))
        finally:
            model.train(training)

    return score


def _batches(loader: Loader, limit: int | None, model: nn.Module) -> Iterator[Batch]:
    device = next(model.parameters()).device
    return (batch.to(device) for batch in islice(loader.one_pass(), limit))


def numbers(scores: Scores) -> dict[str, float]:
    """The bare values, for the loop's log."""
    return {name: estimate.value for name, estimate in scores.items()}


def as_json(scores: Scores | None) -> dict[str, Any] | None:
    """Scores for evaluation.json: value, interval and size of each."""
    if scores is None:
        return None
    return {
        name: {"value": estimate.value, "low": estimate.low, "high": estimate.high, "n": estimate.n}
        for name, estimate in scores.items()
    }
