"""Optimizers: an update rule, the form its state is kept in, and the place where it lies; three independent choices."""

from lorasmith.training.optimizers.optimizer import Optimizer
from lorasmith.training.optimizers.table import build, optimizers

__all__ = ["Optimizer", "build", "optimizers"]
