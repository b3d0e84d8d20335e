"""Optimizers by the name that a recipe gives."""

from collections.abc import Callable, Mapping

from torch import nn

from lorasmith.errors import RecipeError, nearest
from lorasmith.training.optimizers.adamw import AdamW
from lorasmith.training.optimizers.optimizer import Optimizer
from lorasmith.training.optimizers.placement import BesideParameter, Placement
from lorasmith.training.optimizers.rule import Rule
from lorasmith.training.optimizers.state_format import Plain, StateFormat
from lorasmith.training.settings import TrainingSettings

Choice = Callable[[TrainingSettings], tuple[Rule, StateFormat, Placement]]

optimizers: dict[str, Choice] = {
    "adamw": lambda settings: (AdamW(settings.betas, settings.eps), Plain(), BesideParameter()),
}
"""What a name stands for: a rule, a state format and a placement."""


def build(parameters: Mapping[str, nn.Parameter], settings: TrainingSettings) -> Optimizer:
    """The optimizer that settings name; RecipeError for an unknown one."""
    if settings.optimizer not in optimizers:
        hint = nearest(settings.optimizer, optimizers)
        raise RecipeError(
            f"training.optimizer={settings.optimizer!r} must be one of {', '.join(sorted(optimizers))}.{hint}"
        )
    rule, state_format, placement = optimizers[settings.optimizer](settings)
    return Optimizer(parameters, rule, state_format, placement, settings.weight_decay)
