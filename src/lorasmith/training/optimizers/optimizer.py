"""An optimizer over named parameters, whose whole state is named tensors and one number."""

from collections.abc import Mapping
from itertools import zip_longest

import torch
from torch import Tensor, nn

from lorasmith.errors import RunError
from lorasmith.ops.remainder import REMAINDER, keep_, whole
from lorasmith.training.optimizers.fused import Kept, fused_step
from lorasmith.training.optimizers.gradients import Gradients, Plain
from lorasmith.training.optimizers.placement import Placement
from lorasmith.training.optimizers.rule import Rule, StepSize
from lorasmith.training.optimizers.state_format import StateFormat

_MASTER, _REMAINDER, _TAKEN = "master", "remainder", "steps"
_WIDE = (torch.float32, torch.float64)


def fresh(rule: Rule, state_format: StateFormat, parameter: Tensor) -> Kept:
    """What is kept for a parameter from its first step on, by slot and part; it may stand on the meta device."""
    kept = {slot.name: state_format.zeros(slot, parameter) for slot in rule.slots}
    if parameter.dtype == torch.bfloat16:
        kept[_REMAINDER] = {"": torch.zeros(parameter.shape, dtype=REMAINDER, device=parameter.device)}
    elif parameter.dtype not in _WIDE:
        kept[_MASTER] = {"": parameter.detach().to(torch.float32, memory_format=torch.contiguous_format)}
    return kept


class Optimizer:
    """Moves parameters by a rule, with its slots kept in a format at a place.

    A parameter in 16 bits has a master copy in f32, kept like a slot but never in a lossy form, since steps are often
    smaller than its last bit; in bf16 only what the parameter leaves of it is kept, in 2 bytes (ops/remainder.py). What
    is written into the parameter between steps counts. Weight decay falls on tensors
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
        self._fused = fused_step(rule, state_format)
        self._kept: dict[str, Kept] = {}
        # the steps that each parameter has taken: those in which it had a gradient
        self._taken: dict[str, int] = {}

    def begin(self) -> None:
        """Count a step, in which some parameters will move."""
        self.steps += 1

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Move every parameter that has a gradient."""
        self.begin()
        moving = [name for name, parameter in self.parameters.items() if parameter.grad is not None]
        for name, following in zip_longest(moving, moving[1:]):
            for kept in self._kept.get(following, {}).values():
                self.placement.expect(kept)
            self.move(name, learning_rate)

    @torch.no_grad()
    def move(self, name: str, learning_rate: float) -> None:
        """Move one parameter, which has a gradient, within a step."""
        parameter = self.parameters[name]
        assert parameter.grad is not None
        self._taken[name] = self._taken.get(name, 0) + 1
        decay = self.weight_decay if parameter.dim() >= 2 else 0.0
        size = StepSize(self._taken[name], learning_rate * self.speeds.get(name, 1.0), decay)
        if name not in self._kept:
            self._kept[name] = {slot: self.placement.place(kept) for slot, kept in self._fresh(parameter).items()}
        fetched = {slot: self.placement.fetch(kept, parameter) for slot, kept in self._kept[name].items()}
        self._update_(parameter, self.gradients.seen(name, parameter.grad), fetched, size)
        for slot, kept in fetched.items():
            self.placement.put_back_(self._kept[name][slot], kept)

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def state_tensors(self) -> dict[str, Tensor]:
        """Everything that is remembered, by "slot|part|parameter name"; views, not copies."""
        tensors = {f"{_TAKEN}||{name}": torch.tensor(taken) for name, taken in self._taken.items()}
        for name, slots in self._kept.items():
            for slot, kept in slots.items():
                tensors |= {f"{slot}|{part}|{name}": tensor for part, tensor in kept.items()}
        return tensors

    def load_state(self, steps: int, tensors: Mapping[str, Tensor]) -> None:
        """Go back to the state that state_tensors gave after that many steps.

        Raises RunError where a tensor belongs to no parameter or has another shape.
        """
        self.steps, self._kept, self._taken = steps, {}, {}
        for key, tensor in tensors.items():
            slot, part, name = key.split("|", 2)
            if name not in self.parameters:
                raise RunError(f"the checkpoint's optimizer state is for {name!r}, which this model does not train")
            self._check_shape(slot, part, name, tensor)
            if slot == _TAKEN:
                self._taken[name] = int(tensor)
            else:
                own = tensor.to(self.parameters[name].device, copy=True)
                self._kept.setdefault(name, {}).setdefault(slot, {})[part] = own
        for name, slots in self._kept.items():
            # checkpoints once counted all steps as each parameter's own
            self._taken.setdefault(name, steps)
            for slot in sorted(self._fresh(self.parameters[name].detach().to("meta")).keys() - slots.keys()):
                raise RunError(
                    f"the checkpoint's optimizer has no {slot!r} of {name!r}; resume with the run's own recipe"
                )
            self._kept[name] = {slot: self.placement.place(kept) for slot, kept in slots.items()}

    def _fresh(self, parameter: Tensor) -> Kept:
        return fresh(self.rule, self.state_format, parameter)

    def _check_shape(self, slot: str, part: str, name: str, tensor: Tensor) -> None:
        parameter = self.parameters[name].detach().to("meta")
        expected = {_TAKEN: {"": torch.zeros(())}, **self._fresh(parameter)}
        if slot not in expected:
            raise RunError(
                f"the checkpoint's optimizer keeps {slot!r} of {name!r}, which this run's does not; resume with the "
                "run's own recipe"
            )
        if part not in expected[slot] or expected[slot][part].shape != tensor.shape:
            raise RunError(
                f"the checkpoint's {slot}|{part} of {name!r} is {tuple(tensor.shape)}, which does not fit the "
                f"parameter {tuple(parameter.shape)}; resume with the run's own recipe"
            )

    def _update_(self, parameter: nn.Parameter, gradient: Tensor, kept: Kept, size: StepSize) -> None:
        """Move parameter by kept tensors, which lie beside it, and change these."""
        master = next((kept[slot][""] for slot in (_MASTER, _REMAINDER) if slot in kept), None)
        if self._fused is not None and self._fused(self.rule, parameter, master, gradient, kept, size):
            return
        weight = parameter if master is None else whole(parameter, master)
        slots = {slot.name: self.state_format.read(slot, kept[slot.name], parameter.shape) for slot in self.rule.slots}
        self.rule.update_(weight, gradient.to(weight.dtype), slots, size)
        for slot in self.rule.slots:
            self.state_format.write_(slot, kept[slot.name], slots[slot.name])
        if master is not None:
            parameter.copy_(weight)
            keep_(master, weight, parameter)
