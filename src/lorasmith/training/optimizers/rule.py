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


@dataclass(frozen=True)
class Slot:
    """A number that a rule remembers for each element of a parameter; one that is not signed is never below zero."""

    name: str
    signed: bool = True


class Rule(ABC):
    """How one tensor moves, given its gradient and the slots that it remembers between steps.

    Each slot has the parameter's shape and reads as f32, whatever form it is kept in.
    """

    slots: ClassVar[tuple[Slot, ...]]

    @abstractmethod
    def update_(self, weight: Tensor, gradient: Tensor, slots: dict[str, Tensor], size: StepSize) -> None:
        """Change weight and slots (by name) in place; all tensors are f32 (or f64) and of one shape."""
