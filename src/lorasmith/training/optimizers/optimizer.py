"""An optimizer over named parameters, whose whole state is named tensors and one number."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lorasmith.errors import RunError
from lorasmith.training.optimizers.gradients import Gradients, Plain
from lorasmith.training.optimizers.placement import Placement
from lorasmith.training.optimizers.rule import Rule, StepSize
from lorasmith.training.optimizers.state_format import StateFormat

_MASTER, _TAKEN = "master", "steps"


class Optimizer:
    """Moves parameters by a rule, with its slots kept in a format at a place.

    A parameter in 16 bits gets an f32 master copy, kept like a slot but never in a lossy form, since steps are often
    smaller than its last bit; what is written into the parameter between steps counts. Weight decay falls on tensors
    with two axes or more. Slots are made at a parameter's first gradient, from which the rule counts its steps; one
    that never gets a gradient never moves. The rule sees gradients as `gradients` shows them, and a parameter's
    learning rate is multiplied by its speed (1 where speeds has none).
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
        # the steps that each parameter has taken: those in which it had a gradient
        self._taken: dict[str, int] = {}

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Move every parameter that has a gradient."""
        self.steps += 1
        for name, parameter in self.parameters.items():
            if parameter.grad is not None:
                self._taken[name] = self._taken.get(name, 0) + 1
                decay = self.weight_decay if parameter.dim() >= 2 else 0.0
                rate = learning_rate * self.speeds.get(name, 1.0)
                gradient = self.gradients.seen(name, parameter.grad)
                self._move(name, parameter, gradient, StepSize(self._taken[name], rate, decay))

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def state_tensors(self) -> dict[str, Tensor]:
        """Everything that is remembered, by "slot|part|parameter name"; views, not copies."""
        tensors = {f"{_TAKEN}||{name}": torch.tensor(taken) for name, taken in self._taken.items()}
        tensors |= {f"{_MASTER}||{name}": master for name, master in self._masters.items()}
        for name, slots in self._kept.items():
            for slot, kept in slots.items():
                tensors |= {f"{slot}|{part}|{name}": tensor for part, tensor in kept.items()}
        return tensors

    def load_state(self, steps: int, tensors: Mapping[str, Tensor]) -> None:
        """Go back to the state that state_tensors gave after that many steps.

        Raises RunError where a tensor belongs to no parameter or has another shape.
        """
        self.steps, self._kept, self._masters, self._taken = steps, {}, {}, {}
        for key, tensor in tensors.items():
            slot, part, name = key.split("|", 2)
            if name not in self.parameters:
                raise RunError(f"the checkpoint's optimizer state is for {name!r}, which this model does not train")
            self._check_shape(slot, part, name, tensor)
            if slot == _TAKEN:
                self._taken[name] = int(tensor)
            elif slot == _MASTER:
                self._masters[name] = tensor.to(self.parameters[name].device, copy=True)
            else:
                own = tensor.to(self.parameters[name].device, copy=True)
                self._kept.setdefault(name, {}).setdefault(slot, {})[part] = own
        for name, slots in self._kept.items():
            # checkpoints once counted all steps as each parameter's own
            self._taken.setdefault(name, steps)
            self._kept[name] = {slot: self.placement.place(kept) for slot, kept in slots.items()}

    def _check_shape(self, slot: str, part: str, name: str, tensor: Tensor) -> None:
        parameter = self.parameters[name].detach().to("meta")
        if slot in self.rule.slots:
            expected = {part: kept.shape for part, kept in self.state_format.zeros(parameter).items()}
        elif slot in (_TAKEN, _MASTER):
            expected = {"": torch.Size() if slot == _TAKEN else parameter.shape}
        else:
            raise RunError(f"the checkpoint's optimizer keeps {slot!r}, which {type(self.rule).__name__} does not")
        if expected.get(part) != tensor.shape:
            raise RunError(
                f"the checkpoint's {slot}|{part} of {name!r} is {tuple(tensor.shape)}, which does not fit the "
                f"parameter {tuple(parameter.shape)}; resume with the run's own recipe"
            )

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
        master = self._masters[name]
        # somebody has written here since the last step, as AdaLoRA sets ranks to zero
        stale = master.to(parameter.dtype) != parameter
        if bool(stale.any()):
            master[stale] = parameter[stale].float()
        return master
