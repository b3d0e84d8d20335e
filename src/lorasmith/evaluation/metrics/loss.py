"""Mean negative log likelihood."""

import numpy as np

from lorasmith.evaluation.estimate import FloatArray
from lorasmith.evaluation.metrics.metric import Metric
from lorasmith.evaluation.metrics.registry import metrics
from lorasmith.evaluation.outcomes import Outcomes, Predicted


class Loss(Metric):
    """Nats a target: a scored token, or an example of a classifier. Every token weighs the same."""

    higher_is_better = False
    tasks = ("causal", "classification")

    def rows(self, outcomes: Outcomes) -> FloatArray:
        targets = outcomes.tokens if isinstance(outcomes, Predicted) else np.ones(len(outcomes))
        return np.stack([outcomes.nll, targets], 1)

    def finish(self, totals: FloatArray) -> FloatArray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return totals[..., 0] / totals[..., 1]


metrics.add("loss", Loss())
