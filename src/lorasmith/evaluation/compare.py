"""What changed between two models scored on the same examples."""

import numpy as np

from lorasmith.errors import DataError
from lorasmith.evaluation.estimate import SEED, Estimate, FloatArray, interval, resampled_counts, totals_of
from lorasmith.evaluation.metrics import Metric, metrics
from lorasmith.evaluation.outcomes import Classified, Outcomes, Predicted
from lorasmith.evaluation.scores import Scores


def compare(before: Scores, after: Scores, *, seed: int = SEED) -> dict[str, Estimate]:
    """after - before of every metric that both have, with a paired 95 % interval: both see the same resamples.

    An interval without 0 is a change that another sample of examples would show too.
    Raises DataError where the two were not scored on the same examples.
    """
    first, second = before.outcomes, after.outcomes
    if first is None or second is None:
        raise DataError("scores read from a file hold no examples to compare; evaluate both models again")
    if not _same_examples(first, second):
        raise DataError(
            f"the two models were scored on different examples ({len(first)} and {len(second)}); "
            "compare them on the same data with the same batch settings"
        )
    return {name: _difference(metrics[name], first, second, seed) for name in before if name in after}


def _difference(metric: Metric, before: Outcomes, after: Outcomes, seed: int) -> Estimate:
    rows_before, rows_after = metric.rows(before), metric.rows(after)

    def changed(totals_before: FloatArray, totals_after: FloatArray) -> FloatArray:
        # of two infinite perplexities nobody knows the difference
        with np.errstate(invalid="ignore"):
            return metric.finish(totals_after) - metric.finish(totals_before)

    drawn = [
        changed(totals_of(counts, rows_before), totals_of(counts, rows_after))
        for counts in resampled_counts(len(rows_before), seed)
    ]
    return interval(float(changed(rows_before.sum(0), rows_after.sum(0))), drawn, len(rows_before))


def _same_examples(first: Outcomes, second: Outcomes) -> bool:
    if isinstance(first, Predicted) and isinstance(second, Predicted):
        return np.array_equal(first.tokens, second.tokens)
    if isinstance(first, Classified) and isinstance(second, Classified):
        return np.array_equal(first.target, second.target)
    return False
