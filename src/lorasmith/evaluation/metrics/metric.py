"""What a metric is: totals over examples, and what follows from them.

Axes: N examples, K totals.
"""

from abc import ABC, abstractmethod
from typing import Literal

from lorasmith.evaluation.estimate import Estimate, FloatArray, bootstrap
from lorasmith.evaluation.outcomes import Outcomes


class Metric(ABC):
    """A figure that is a function of sums over examples, so that resampling them is one matrix product."""

    higher_is_better: bool
    tasks: tuple[Literal["causal", "classification"], ...]

    @abstractmethod
    def rows(self, outcomes: Outcomes) -> FloatArray:
        """What each example adds to the totals: [N, K]."""

    @abstractmethod
    def finish(self, totals: FloatArray) -> FloatArray:
        """The metric [...] of totals [..., K]."""

    def estimate(self, outcomes: Outcomes) -> Estimate:
        """The metric with its 95 % interval; by the bootstrap, where a metric knows no better way.

        Raises DataError for no examples.
        """
        return bootstrap(self.rows(outcomes), self.finish)
