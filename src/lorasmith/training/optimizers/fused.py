"""Steps that a rule and a state format take together, in one pass over a parameter.

A pair may have one; any other rule and format work together by reading slots, updating and writing them.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lorasmith.ops import AdamStep, Moment, adam8bit_
from lorasmith.ops.adam8bit.reference import PART, PART_BYTES
from lorasmith.ops.library import NATIVE_KERNELS
from lorasmith.planning.memory_plan import plain_update
from lorasmith.training.optimizers.adamw import AdamW
from lorasmith.training.optimizers.eight_bit import CODES, SCALES, EightBit, in_blocks
from lorasmith.training.optimizers.rule import Rule, StepSize
from lorasmith.training.optimizers.state_format import StateFormat

Kept = dict[str, dict[str, Tensor]]
# rule, parameter, in 16 bits its master or remainder, gradient, kept tensors by slot and part; False: not this case
FusedStep = Callable[[Rule, Tensor, Tensor | None, Tensor, Kept, StepSize], bool]


def fused_step(rule: Rule, state_format: StateFormat) -> FusedStep | None:
    """The step that the two take together, where there is one."""
    return _STEPS.get((type(rule), type(state_format)))


def update_bytes(rule: Rule, state_format: StateFormat, parameter: Tensor, device: torch.device) -> int:
    """Bytes that the update of parameter works with on device, for the memory plan; it may stand on the meta device."""
    slots = [state_format.zeros(slot, parameter) for slot in rule.slots]
    if fused_step(rule, state_format) is None or not all(map(in_blocks, slots)):
        return plain_update(parameter)
    if device.type in NATIVE_KERNELS["adam8bit_"]:
        return 0
    return min(parameter.numel(), PART) * PART_BYTES


def _adam8bit(
    rule: Rule, parameter: Tensor, master: Tensor | None, gradient: Tensor, kept: Kept, size: StepSize
) -> bool:
    assert isinstance(rule, AdamW)
    mean, square = (kept[slot.name] for slot in rule.slots)
    if not in_blocks(mean):
        return False
    step = AdamStep(*rule.betas, rule.eps, size.step, size.learning_rate, size.weight_decay)
    adam8bit_(parameter, gradient, _moment(mean), _moment(square), step, master)
    return True


def _moment(kept: dict[str, Tensor]) -> Moment:
    return Moment(kept[CODES], kept[SCALES])


_STEPS: dict[tuple[type[Rule], type[StateFormat]], FusedStep] = {(AdamW, EightBit): _adam8bit}
