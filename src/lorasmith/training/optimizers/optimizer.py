"""An optimizer over named parameters, whose whole state is named tensors and one number."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lorasmith.errors import RunError
from lorasmith.training.optimizers.gradients import Gradients, Plain
from lorasmith.training.optimizers.placement import Placement
from lorasmith.training.optimizers.rule import Rule, StepSize
from lorasmith.training.optimizers.state_format import StateFormat

_MASTER = "master"


class Optimizer:
    """Moves parameters by a rule, with its slots kept in a format at a place.

    A parameter in 16 bits gets an f32 master copy, kept like a slot but never in a lossy form, since steps are often
    smaller than its last bit. Weight decay falls on tensors with two axes or more. Slots are made at a parameter's
    first gradient; one that never gets a gradient never moves. The rule sees gradients as `gradients` shows them, and a
    parameter's learning rate is multiplied by its speed (1 where speeds has none).
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        rule: Rule,
        state_format: StateFormat,
        placement: Placement,
        weight_decay: float = 0.0,
        gradients: Gradients | None = None,
        speeds: Mapping[str, float] | None = None,
    ) -> None:
        self.parameters = dict(parameters)
        self.rule = rule
        self.state_format = state_format
        self.placement = placement
        self.weight_decay = weight_decay
        self.gradients = gradients or Plain()
        self.speeds = dict(speeds or {})
        self.steps = 0
        self._kept: dict[str, dict[str, dict[str, Tensor]]] = {}
        self._masters: dict[str, Tensor] = {}

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Move every parameter that has a gradient."""
        self.steps += 1
        for name, parameter in self.parameters.items():
            if parameter.grad is not None:
                decay = self.weight_decay if parameter.dim() >= 2 else 0.0
                rate = learning_rate * self.speeds.get(name, 1.0)
                gradient = self.gradients.seen(name, parameter.grad)
                self._move(name, parameter, gradient, StepSize(self.steps, rate, decay))

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def state_tensors(self) -> dict[str, Tensor]:
        """Everything that is remembered, by "slot|part|parameter name"; views, not copies."""
        tensors = {f"{_MASTER}||{name}": master for name, master in self._masters.items()}
        for name, slots in self._kept.items():
            for slot, kept in slots.items():
                tensors |= {f"{slot}|{part}|{name}": tensor for part, tensor in kept.items()}
        return tensors

    def load_state(self, steps: int, tensors: Mapping[str, Tensor]) -> None:
        """Go back to the state that state_tensors gave after that many steps.

        Raises RunError where a tensor belongs to no parameter or has another shape.
        """
        self.steps, self._kept, self._masters = steps, {}, {}
        for key, tensor in tensors.items():
            slot, part, name = key.split("|", 2)
            if name not in self.parameters:
                raise RunError(f"the checkpoint's optimizer state is for {name!r}, which this model does not train")
            parameter = self.parameters[name]
            tensor = tensor.to(parameter.device, copy=True)
            if slot == _MASTER:
                self._masters[name] = tensor
            elif slot in self.rule.slots:
                self._kept.setdefault(name, {}).setdefault(slot, {})[part] = tensor
            else:
                raise RunError(f"the checkpoint's optimizer keeps {slot!r}, which {type(self.rule).__name__} does not")
        for name, slots in self._kept.items():
            self._kept[name] = {slot: self.placement.place(kept) for slot, kept in slots.items()}

    def _move(self, name: str, parameter: nn.Parameter, gradient: Tensor, size: StepSize) -> None:
        if name not in self._kept:
            zeros = {slot: self.state_format.zeros(parameter) for slot in self.rule.slots}
            self._kept[name] = {slot: self.placement.place(kept) for slot, kept in zeros.items()}
        fetched = {slot: self.placement.fetch(kept, parameter) for slot, kept in self._kept[name].items()}
        slots = {slot: self.state_format.read(kept, parameter.shape) for slot, kept in fetched.items()}
        weight = self._wide_weight(name, parameter)
        self.rule.update_(weight, gradient.to(weight.dtype), slots, size)
        for slot, kept in fetched.items():
            self.state_format.write_(kept, slots[slot])
            self.placement.put_back_(self._kept[name][slot], kept)
        if weight is not parameter:
            parameter.copy_(weight)

    def _wide_weight(self, name: str, parameter: nn.Parameter) -> Tensor:
        """The parameter itself, or its f32 master where it has 16 bits."""
        if parameter.dtype in (torch.float32, torch.float64):
            return parameter
        if name not in self._masters:
            self._masters[name] = parameter.detach().float()
        return self._masters[name]
