"""Scores of a model on held-out examples, as the recipes need them."""

from itertools import islice

from torch import nn

from lorasmith.data import Loader
from lorasmith.evaluation import Scores, evaluate_causal, evaluate_classifier


class Scorer:
    """Scores model, as it stands at each call, on one pass over loader; latest are the scores of the last call."""

    def __init__(self, model: nn.Module, loader: Loader, task: str, max_batches: int | None = None) -> None:
        self.model, self.loader, self.max_batches = model, loader, max_batches
        self.evaluate = evaluate_causal if task == "causal" else evaluate_classifier
        self.latest: Scores | None = None

    def __call__(self) -> Scores:
        device = next(self.model.parameters()).device
        batches = (batch.to(device) for batch in islice(self.loader.one_pass(), self.max_batches))
        self.latest = self.evaluate(self.model, batches)
        return self.latest


def numbers(scores: Scores) -> dict[str, float]:
    """The bare values, for the loop's log."""
    return {name: estimate.value for name, estimate in scores.items()}
