"""The harmonic mean of precision and recall.

Axes: N examples, C classes.
"""

import numpy as np

from lorasmith.evaluation.estimate import FloatArray
from lorasmith.evaluation.metrics.metric import Metric
from lorasmith.evaluation.metrics.registry import metrics
from lorasmith.evaluation.outcomes import Classified, Outcomes


def class_rows(outcomes: Classified) -> FloatArray:
    """Of each example and class the counts of [both, target, chosen]: [N, 3 * C]."""
    classes = np.arange(outcomes.classes)
    target_NC = outcomes.target[:, None] == classes
    chosen_NC = outcomes.chosen[:, None] == classes
    return np.concatenate([target_NC & chosen_NC, target_NC, chosen_NC], 1).astype(np.float64)


def class_f1(totals: FloatArray) -> FloatArray:
    """F1 of each class [..., C] of totals [..., 3 * C]: 2 both / (target + chosen), NaN where that is 0 / 0."""
    both, target, chosen = np.split(totals, 3, -1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return 2 * both / (target + chosen)


class MacroF1(Metric):
    """The plain mean of F1 over the classes that occur as a target or were chosen."""

    higher_is_better = True
    tasks = ("classification",)

    def rows(self, outcomes: Outcomes) -> FloatArray:
        assert isinstance(outcomes, Classified)
        return class_rows(outcomes)

    def finish(self, totals: FloatArray) -> FloatArray:
        return np.asarray(np.nanmean(class_f1(totals), -1))


class BinaryF1(Metric):
    """F1 of class 1, for two classes."""

    higher_is_better = True
    tasks = ("classification",)

    def rows(self, outcomes: Outcomes) -> FloatArray:
        assert isinstance(outcomes, Classified)
        return class_rows(outcomes)

    def finish(self, totals: FloatArray) -> FloatArray:
        # a class that never occurs and was never chosen counts as missed
        return np.nan_to_num(class_f1(totals)[..., 1])


metrics.add("f1", MacroF1())
metrics.add("f1_binary", BinaryF1())
