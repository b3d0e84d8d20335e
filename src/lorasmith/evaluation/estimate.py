"""A number with the interval that the sample allows.

Axes: N examples, K totals that a metric needs, R resamples.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lorasmith.errors import DataError
from lorasmith.json_text import NOT_FINITE

FloatArray = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Finish = Callable[[FloatArray], FloatArray]

RESAMPLES = 1000
SEED = 0
# the 97.5 % point of the standard normal distribution
_Z = 1.959963984540054
# resampling counts held at once: 32 MiB
_COUNTS = 1 << 22


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval, from n examples."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        value, low, high = (_shown(end) for end in (self.value, self.low, self.high))
        reach = "" if value == NOT_FINITE else f"{low} to {high}, "
        return f"{value} ({reach}n = {self.n:,})"

    def to_dict(self) -> dict[str, float | int]:
        """The four fields, as evaluation.json holds them."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Estimate":
        """What to_dict gave, or a file holds of it, whose null is NaN. Raises TypeError for other fields."""
        values: dict[str, Any] = {name: math.nan if value is None else value for name, value in fields.items()}
        return cls(**values)


def _shown(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else NOT_FINITE


def bootstrap(rows_NK: FloatArray, finish: Finish, *, seed: int = SEED) -> Estimate:
    """Percentile interval of finish(totals of rows), examples drawn anew with replacement.

    finish maps totals [..., K] to values [...]. Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993),
    section 13.3. Raises DataError for no rows.
    """
    if not len(rows_NK):
        raise DataError("there are no examples to score; check the validation data")
    values = [finish(totals_of(counts_RN, rows_NK)) for counts_RN in resampled_counts(len(rows_NK), seed)]
    return interval(float(finish(rows_NK.sum(0))), values, len(rows_NK))


def totals_of(counts_RN: FloatArray, rows_NK: FloatArray) -> FloatArray:
    """Totals [R, K] of rows that are drawn as often as counts say; NaN where a row is infinite and not drawn."""
    with np.errstate(invalid="ignore"):
        return counts_RN @ rows_NK


def interval(value: float, drawn: Sequence[FloatArray], examples: int) -> Estimate:
    """value with the 95 % percentile interval of what resamples of the examples gave."""
    values_R = np.concatenate(drawn)
    known_R = values_R[~np.isnan(values_R)]
    if not len(known_R):
        return Estimate(value, value, value, examples)
    with np.errstate(invalid="ignore"):
        # between two infinite ones numpy finds NaN
        low, high = np.nan_to_num(np.quantile(known_R, [0.025, 0.975]), nan=np.inf, posinf=np.inf, neginf=-np.inf)
    # the percentiles of a skewed sample may leave the value itself out by a rounding
    return Estimate(value, min(float(low), value), max(float(high), value), examples)


def resampled_counts(examples: int, seed: int) -> list[FloatArray]:
    """How often each example is drawn in each of RESAMPLES resamples: blocks [R, N], the same for the same seed."""
    random = np.random.default_rng(seed)
    block = max(1, min(RESAMPLES, _COUNTS // examples))
    sizes = [min(block, RESAMPLES - start) for start in range(0, RESAMPLES, block)]
    even = np.full(examples, 1 / examples)
    return [random.multinomial(examples, even, size=size).astype(np.float64) for size in sizes]


def wilson(successes: int, trials: int) -> Estimate:
    """A share with Wilson's score interval, which stays inside 0 to 1 and does not collapse at its ends.

    Source: Wilson, Journal of the American Statistical Association 22 (1927). Raises DataError for no trials.
    """
    if trials < 1:
        raise DataError("there are no examples to score; check the validation data")
    share = successes / trials
    middle = share + _Z**2 / (2 * trials)
    reach = _Z * math.sqrt(share * (1 - share) / trials + _Z**2 / (4 * trials**2))
    scale = 1 + _Z**2 / trials
    # at the ends rounding would leave 0 or 1 just outside
    low, high = min(share, (middle - reach) / scale), max(share, (middle + reach) / scale)
    return Estimate(share, max(0.0, low), min(1.0, high), trials)
