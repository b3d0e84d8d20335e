"""The scores of one model on one set of examples."""

from collections.abc import ItemsView, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from lorasmith.errors import DataError
from lorasmith.evaluation.estimate import Estimate, FloatArray, bootstrap
from lorasmith.evaluation.metrics import metrics
from lorasmith.evaluation.metrics.f1 import class_f1, class_rows
from lorasmith.evaluation.outcomes import Classified, Outcomes


@dataclass(frozen=True)
class Scores(Mapping[str, Estimate]):
    """Metric -> estimate. per_class is the F1 of each class of a classifier that occurs.

    outcomes are the examples behind them, for comparing two models on the same ones; they are not written to files.
    """

    estimates: Mapping[str, Estimate]
    per_class: Mapping[int, Estimate] = field(default_factory=dict)
    outcomes: Outcomes | None = field(default=None, repr=False, compare=False)

    def __getitem__(self, metric: str) -> Estimate:
        return self.estimates[metric]

    def __iter__(self) -> Iterator[str]:
        return iter(self.estimates)

    def __len__(self) -> int:
        return len(self.estimates)

    def items(self) -> ItemsView[str, Estimate]:
        """Pairs of metric and estimate."""
        return self.estimates.items()

    def to_dict(self, class_names: Sequence[str] = ()) -> dict[str, Any]:
        """What evaluation.json holds: each metric's value, low, high, n, and F1 by class under "per_class"."""
        content: dict[str, Any] = {name: estimate.to_dict() for name, estimate in self.estimates.items()}
        if self.per_class:
            names = class_names or [str(number) for number in range(max(self.per_class) + 1)]
            content["per_class"] = {names[number]: one.to_dict() for number, one in self.per_class.items()}
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Scores":
        """Scores that to_dict wrote, without examples and classes. Raises DataError for anything else."""
        try:
            return cls({name: Estimate.from_dict(one) for name, one in content.items() if name != "per_class"})
        except (TypeError, AttributeError) as error:
            raise DataError(f"evaluation.json holds scores that cannot be read ({error}); evaluate again") from error


def score(outcomes: Outcomes) -> Scores:
    """All metrics of the task on outcomes. Raises DataError for no examples, or causal ones without a scored token."""
    if not len(outcomes):
        raise DataError("there are no examples to score; check the validation data")
    task = "classification" if isinstance(outcomes, Classified) else "causal"
    names = [name for name, metric in metrics.items() if task in metric.tasks and not _needless(name, outcomes)]
    estimates = {name: metrics[name].estimate(outcomes) for name in names}
    return Scores(estimates, _per_class(outcomes), outcomes)


def _needless(name: str, outcomes: Outcomes) -> bool:
    return name == "f1_binary" and isinstance(outcomes, Classified) and outcomes.classes != 2


def _per_class(outcomes: Outcomes) -> dict[int, Estimate]:
    if not isinstance(outcomes, Classified):
        return {}
    rows = class_rows(outcomes)
    occurring = [number for number in range(outcomes.classes) if rows[:, outcomes.classes + number].any()]
    return {number: bootstrap(rows, partial(_f1_of, number)) for number in occurring}


def _f1_of(number: int, totals: FloatArray) -> FloatArray:
    return class_f1(totals)[..., number]
