"""Optimizers by the name that a recipe gives."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from lorasmith.errors import RecipeError, nearest
from lorasmith.planning.memory_plan import OptimizerMemory
from lorasmith.training.optimizers import gradients
from lorasmith.training.optimizers.adamw import AdamW
from lorasmith.training.optimizers.eight_bit import EightBit
from lorasmith.training.optimizers.fused import update_bytes
from lorasmith.training.optimizers.gradients import Gradients, Projected
from lorasmith.training.optimizers.optimizer import Optimizer, fresh
from lorasmith.training.optimizers.paged import Paged
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
    "paged_adamw": Choice(lambda settings: AdamW(settings.betas, settings.eps), placement=Paged),
    "paged_adamw8bit": Choice(lambda settings: AdamW(settings.betas, settings.eps), EightBit, Paged),
    "lorafa": Choice(lambda settings: AdamW(settings.betas, settings.eps), gradients=Projected, freezes_inputs=True),
}


def build(parameters: Mapping[str, nn.Parameter], settings: TrainingSettings, pairs: Pairs | None = None) -> Optimizer:
    """The optimizer that settings name; pairs are LoRA's factors among the parameters, by the name of B.

    Raises RecipeError for an unknown optimizer, and for one that asks for pairs where there are none; as
    require_placement does, too.
    """
    choice, pairs = choice_of(settings), pairs or {}
    require_pairs(settings, pairs)
    require_placement(settings, parameters)
    return Optimizer(
        parameters,
        choice.rule(settings),
        choice.state_format(),
        choice.placement(),
        settings.weight_decay,
        choice.gradients(pairs),
        dict.fromkeys(pairs, settings.loraplus_lr_ratio),
    )


def require_placement(
    settings: TrainingSettings, parameters: Mapping[str, Tensor], device: torch.device | None = None
) -> None:
    """Raise InputError where the state for parameters cannot lie where the optimizer keeps it.

    device is where they will train (None: where they are).
    """
    choice = choice_of(settings)
    kept = (fresh(choice.rule(settings), choice.state_format(), each.to("meta")) for each in parameters.values())
    where = device or next((each.device for each in parameters.values()), torch.device("cpu"))
    choice.placement().check(where, chain.from_iterable(slots.values() for slots in kept))


def optimizer_memory(settings: TrainingSettings, device: torch.device) -> OptimizerMemory:
    """What the optimizer that settings name takes on device, for the memory plan; RecipeError for an unknown one."""
    choice = choice_of(settings)
    rule, state_format = choice.rule(settings), choice.state_format()

    def state(parameter: Tensor) -> int:
        slots = fresh(rule, state_format, parameter.to("meta"))
        return sum(tensor.nbytes for kept in slots.values() for tensor in kept.values())

    def update(parameter: Tensor) -> int:
        return update_bytes(rule, state_format, parameter.to("meta"), device)

    return OptimizerMemory(state, update, choice.placement().pages, settings.step_in_backward)


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
