"""Round numbers for the axes of a chart."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """Maps values from low..high to pixels from start..end."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def nice_ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """About wanted round values that enclose low..high; equal ends are widened."""
    if high <= low:
        reach = abs(low) * 0.5 or 1.0
        low, high = low - reach, high + reach
    raw = (high - low) / wanted
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]
