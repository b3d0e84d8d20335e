"""Training in float16: the loss is multiplied, so that small gradients survive, and what overflows is not taken.

float16 ends at 65,504 and holds nothing below 6e-8, where many gradients of activations lie. A factor on the loss moves
them all up; where one then becomes infinite, the step is left out and the factor halved, and after many good steps it
is doubled again. The factor is a power of two, so that it rounds nothing. Source: arXiv 1710.03740, section 3.2.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lorasmith.errors import RunError

_START, _LARGEST, _SMALLEST = 2.0**16, 2.0**24, 1.0
_GROWS_AFTER = 1000


@dataclass
class LossScale:
    """The factor, the good steps since it last changed, and how many steps were left out so far."""

    factor: float = _START
    good: int = 0
    skipped: int = 0

    def unscale_(self, gradients: Sequence[Tensor]) -> None:
        """Divide gradients by the factor, in place."""
        for gradient in gradients:
            gradient.mul_(1 / self.factor)

    def took(self) -> None:
        """A step was good."""
        self.good += 1
        if self.good >= _GROWS_AFTER:
            self.factor, self.good = min(2 * self.factor, _LARGEST), 0

    def overflowed(self, step: int) -> None:
        """A step is left out. Raises RunError where the factor is at its end, so that something else is infinite."""
        if self.factor <= _SMALLEST:
            raise RunError(
                f"step {step}: the gradient is not finite with a loss scale of {self.factor:g} either: float16 cannot "
                "hold the activations, or data or base model hold NaN; train with dtype: bf16 or fp32"
            )
        self.factor, self.good = self.factor / 2, 0
        self.skipped += 1


def is_finite(*values: float) -> bool:
    """Whether no value is infinite or NaN."""
    return all(math.isfinite(value) for value in values)
