"""Scores of a model on held-out examples, as the recipes need them."""

from collections.abc import Callable
from itertools import islice

from torch import nn

from lorasmith.data import Loader
from lorasmith.evaluation import Scores, evaluate_causal, evaluate_classifier

Score = Callable[[], Scores]


def scorer(model: nn.Module, loader: Loader, task: str, max_batches: int | None = None) -> Score:
    """A function that scores model, as it stands when it is called, on one pass over loader."""
    evaluate = evaluate_causal if task == "causal" else evaluate_classifier

    def score() -> Scores:
        device = next(model.parameters()).device
        return evaluate(model, (batch.to(device) for batch in islice(loader.one_pass(), max_batches)))

    return score


def numbers(scores: Scores) -> dict[str, float]:
    """The bare values, for the loop's log."""
    return {name: estimate.value for name, estimate in scores.items()}
