"""Optimizers by the name that a recipe gives."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from lorasmith.errors import RecipeError, nearest
from lorasmith.training.optimizers import gradients
from lorasmith.training.optimizers.adamw import AdamW
from lorasmith.training.optimizers.eight_bit import EightBit
from lorasmith.training.optimizers.gradients import Gradients, Projected
from lorasmith.training.optimizers.optimizer import Optimizer
from lorasmith.training.optimizers.pairs import Pairs
from lorasmith.training.optimizers.placement import BesideParameter, Placement
from lorasmith.training.optimizers.rule import Rule
from lorasmith.training.optimizers.state_format import Plain, StateFormat
from lorasmith.training.settings import TrainingSettings


@dataclass(frozen=True)
class Choice:
    """What a name stands for: a rule, a state format, a placement, and what the rule sees of the gradients.

    freezes_inputs says that LoRA's A never moves.
    """

    rule: Callable[[TrainingSettings], Rule]
    state_format: Callable[[], StateFormat] = Plain
    placement: Callable[[], Placement] = BesideParameter
    gradients: Callable[[Pairs], Gradients] = lambda pairs: gradients.Plain()
    freezes_inputs: bool = False


optimizers: dict[str, Choice] = {
    "adamw": Choice(lambda settings: AdamW(settings.betas, settings.eps)),
    "adamw8bit": Choice(lambda settings: AdamW(settings.betas, settings.eps), EightBit),
    "lorafa": Choice(lambda settings: AdamW(settings.betas, settings.eps), gradients=Projected, freezes_inputs=True),
}


def build(parameters: Mapping[str, nn.Parameter], settings: TrainingSettings, pairs: Pairs | None = None) -> Optimizer:
    """The optimizer that settings name; pairs are LoRA's factors among the parameters, by the name of B.

    Raises RecipeError for an unknown optimizer, and for one that asks for pairs where there are none.
    """
    choice, pairs = choice_of(settings), pairs or {}
    require_pairs(settings, pairs)
    return Optimizer(
        parameters,
        choice.rule(settings),
        choice.state_format(),
        choice.placement(),
        settings.weight_decay,
        choice.gradients(pairs),
        dict.fromkeys(pairs, settings.loraplus_lr_ratio),
    )


def require_pairs(settings: TrainingSettings, pairs: Pairs) -> None:
    """Raise RecipeError where settings ask for something of LoRA's factors, and pairs has none."""
    freezes = choice_of(settings).freezes_inputs
    if not pairs and (freezes or settings.loraplus_lr_ratio != 1):
        asking = "optimizer: lorafa" if freezes else "loraplus_lr_ratio"
        raise RecipeError(f"training.{asking} is for LoRA's factors A and B, and none train; leave it out")


def choice_of(settings: TrainingSettings) -> Choice:
    """What settings.optimizer stands for; RecipeError for an unknown name."""
    if settings.optimizer not in optimizers:
        hint = nearest(settings.optimizer, optimizers)
        raise RecipeError(
            f"training.optimizer={settings.optimizer!r} must be one of {', '.join(sorted(optimizers))}.{hint}"
        )
    return optimizers[settings.optimizer]
