"""The prediction as data: bytes by component, printable and written to plan.json."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lorasmith.errors import PlanError

# AdamW keeps two moments in f32
ADAMW_BYTES = 8.0


def _adamw_state(parameter: Tensor) -> int:
    # what a bf16 weight leaves of its f32 copy; beside f16 the whole copy
    copy = 2 if parameter.dtype == torch.bfloat16 else 4 if parameter.itemsize < 4 else 0
    return round(parameter.numel() * (ADAMW_BYTES + copy))


def plain_update(parameter: Tensor) -> int:
    """Bytes of an update in f32: a number an element, for one in 16 bits a gradient in f32 too, in bf16 the weight."""
    each = 12 if parameter.dtype == torch.bfloat16 else 8 if parameter.itemsize < 4 else parameter.itemsize
    return parameter.numel() * each


@dataclass(frozen=True)
class OptimizerMemory:
    """What an optimizer takes: by default AdamW's in f32.

    state gives the bytes that are kept for a parameter, what one in 16 bits needs for its f32 copy included; update
    those that its update works with. pages says that the state gives way to everything else; in_backward that each
    parameter moves as soon as its gradient is there, which is then freed.
    """

    state: Callable[[Tensor], int] = _adamw_state
    update: Callable[[Tensor], int] = plain_update
    pages: bool = False
    in_backward: bool = False


@dataclass(frozen=True)
class PlanSettings:
    """What of a run decides its memory, besides the model.

    batch_size is of one micro-batch, length the tokens of one example or pack. autocast is the type that matrix
    products run in, where it is not the weights' own. baseline is the memory of Python and its libraries in bytes;
    None reads it from this process, and 0 says that only tensors count, as on an accelerator. device is the type of
    device that the model will train on.
    Raises PlanError if a size is not positive.
    """

    batch_size: int
    length: int
    task: Literal["causal", "classification"] = "causal"
    gradient_checkpointing: bool = False
    offload_checkpoints: bool = False
    return_freed_memory: bool = False
    optimizer: OptimizerMemory = OptimizerMemory()
    autocast: torch.dtype | None = None
    baseline: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        for field in ("batch_size", "length"):
            if getattr(self, field) < 1:
                raise PlanError(f"{field}={getattr(self, field)} must be at least 1 to predict memory")


@dataclass(frozen=True)
class MemoryPlan:
    """Predicted bytes at the highest moment of a training step; the components sum to the total.

    host is what waits in host memory meanwhile, beside the total; state that pages may lie on the device instead.
    compiled says that the run will have compiled graphs, of which the prediction knows nothing: it is that of the
    same step without them.
    """

    components: Mapping[str, int]
    device: str = "cpu"
    host: int = 0
    compiled: bool = False

    @property
    def total(self) -> int:
        """Predicted peak in bytes."""
        return sum(self.components.values())

    def lines(self) -> list[str]:
        """A table for a terminal: a line a component, the total last."""
        width = max([len(name) for name in self.components] + [len("predicted peak")])
        rows = [*self.components.items(), ("predicted peak", self.total)]
        if self.host:
            rows.append(("in host memory", self.host))
        lines = [f"{name:<{width}}  {readable(size):>10}" for name, size in rows]
        return [*lines, "of a step without compiled graphs, whose memory is not known"] if self.compiled else lines

    def to_json(self) -> str:
        """The text of plan.json."""
        content = {"device": self.device, "components": dict(self.components), "total": self.total, "host": self.host}
        return json.dumps(content, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "MemoryPlan":
        """The plan that to_json wrote. Raises PlanError for other text."""
        try:
            content = json.loads(text)
            components = {str(name): int(size) for name, size in content["components"].items()}
            # plans were once without it
            return cls(components, str(content["device"]), int(content.get("host", 0)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PlanError(f"plan.json does not hold a memory plan ({error!r}); run train --dry-run again") from error


def readable(size: int) -> str:
    """A number of bytes in the unit that keeps it short, such as "1.50 GiB"."""
    if size >= 2**30:
        return f"{size / 2**30:.2f} GiB"
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size / 2**10:.1f} KiB"
