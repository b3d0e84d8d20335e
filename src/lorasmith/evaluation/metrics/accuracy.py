"""The share of right answers."""

import numpy as np

from lorasmith.evaluation.estimate import Estimate, FloatArray, wilson
from lorasmith.evaluation.metrics.metric import Metric
from lorasmith.evaluation.metrics.registry import metrics
from lorasmith.evaluation.outcomes import Classified, Outcomes


class Accuracy(Metric):
    """Examples whose class was chosen, by all examples."""

    higher_is_better = True
    tasks = ("classification",)

    def rows(self, outcomes: Outcomes) -> FloatArray:
        assert isinstance(outcomes, Classified)
        right = (outcomes.target == outcomes.chosen).astype(np.float64)
        return np.stack([right, np.ones_like(right)], 1)

    def finish(self, totals: FloatArray) -> FloatArray:
        return totals[..., 0] / totals[..., 1]

    def estimate(self, outcomes: Outcomes) -> Estimate:
        right, trials = self.rows(outcomes).sum(0)
        return wilson(int(right), int(trials))


metrics.add("accuracy", Accuracy())
