"""Optimizers: a rule, what it sees of gradients, the form of its state, and where that lies; independent choices."""

from lorasmith.training.optimizers.optimizer import Optimizer
from lorasmith.training.optimizers.pairs import factor_pairs, frozen_inputs
from lorasmith.training.optimizers.table import (
    build,
    choice_of,
    optimizer_memory,
    optimizers,
    require_pairs,
    require_placement,
)

__all__ = [
    "Optimizer",
    "build",
    "choice_of",
    "factor_pairs",
    "frozen_inputs",
    "optimizer_memory",
    "optimizers",
    "require_pairs",
    "require_placement",
]
