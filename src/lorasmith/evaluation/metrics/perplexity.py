"""The exponential of the mean negative log likelihood of a token."""

import numpy as np

from lorasmith.evaluation.estimate import FloatArray
from lorasmith.evaluation.metrics.loss import Loss
from lorasmith.evaluation.metrics.metric import Metric
from lorasmith.evaluation.metrics.registry import metrics
from lorasmith.evaluation.outcomes import Outcomes


class Perplexity(Metric):
    """How many equally likely tokens the model hesitates between."""

    higher_is_better = False
    tasks = ("causal",)

    def __init__(self) -> None:
        self._loss = Loss()

    def rows(self, outcomes: Outcomes) -> FloatArray:
        return self._loss.rows(outcomes)

    def finish(self, totals: FloatArray) -> FloatArray:
        with np.errstate(over="ignore"):
            return np.exp(self._loss.finish(totals))


metrics.add("perplexity", Perplexity())
