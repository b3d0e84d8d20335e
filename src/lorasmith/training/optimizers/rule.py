"""What an update rule is."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor


@dataclass(frozen=True)
class StepSize:
    """What an update depends on besides the tensors; step counts from 1."""

    step: int
    learning_rate: float
    weight_decay: float


class Rule(ABC):
    """How one tensor moves, given its gradient and the slots that it remembers between steps.

    slots names them; each has the parameter's shape and reads as f32, whatever form it is kept in.
    """

    slots: ClassVar[tuple[str, ...]]

    @abstractmethod
    def update_(self, weight: Tensor, gradient: Tensor, slots: dict[str, Tensor], size: StepSize) -> None:
        """Change weight and slots in place; all tensors are f32 (or f64) and of one shape."""
