"""Peak memory of training the 65B and 7B shapes: rank 64 on all linear layers, one row of 512 tokens, checkpointing.

QLoRA's own settings (arXiv 2305.14314, figure 6), with adapters and optimizer state in fewer bytes, paged, and moved in
the backward pass. The base is made once a shape; each way attaches its adapters to it and takes two steps. The peak
is that of PyTorch's allocator; device_used is what the whole device had taken after a step, unified memory included.
"""

from dataclasses import dataclass, field
from typing import Any

import random_llama
from measuring import Place, forget, peak, place, tell, told
from random_llama import LLAMA_7B, LLAMA_65B, TINY, Shape
from training_runs import MadeUp, Missing, settings_of, take_steps

# the second step has the first one's state
RANK, LENGTH, STEPS = 64, 512, 2


@dataclass(frozen=True)
class Way:
    """How it is trained. wide: adapters in f32, else in bf16."""

    name: str
    wide: bool
    settings: dict[str, Any] = field(default_factory=dict)


FUSED = {"step_in_backward": True, "clip": None}
WAYS = (
    Way("bf16 adapters, 8-bit Adam", False, {"optimizer": "adamw8bit"}),
    Way("bf16 adapters, paged 8-bit Adam, step in the backward pass", False, {"optimizer": "paged_adamw8bit", **FUSED}),
    Way("f32 adapters, Adam", True, {"optimizer": "adamw"}),
)


def shapes(where: Place) -> dict[str, Shape]:
    return {"tiny": TINY} if where.tiny else {"7B": LLAMA_7B, "65B": LLAMA_65B}


def measure(base: Any, shape: Shape, way: Way, where: Place) -> dict[str, Any]:
    """Peak bytes of two steps, and what the adapters count."""
    model = random_llama.adapted(base, 4 if where.tiny else RANK, wide=way.wide)
    batches = MadeUp(1, 16 if where.tiny else LENGTH, shape.vocabulary, STEPS, where.device)
    try:
        with peak(where.device) as found:
            done = take_steps(model, batches, gradient_checkpointing=True, **way.settings)
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    finally:
        model.unload()
    found["device_used"] = batches.device_used
    return {**found, "trained": trained, "seconds": done.seconds[-1], "losses": done.losses}


def main() -> None:
    where = place(__doc__)
    for size, shape in shapes(where).items():
        base = random_llama.ours(shape, where.device)
        for way in WAYS:
            about = {"way": way.name, "length": LENGTH, "rank": RANK}
            try:
                settings_of(**way.settings)
            except Missing as reason:
                tell(f"peak, {size}", **about, skipped=str(reason))
                continue
            if where.device.type == "cpu" and str(way.settings.get("optimizer")).startswith("paged"):
                tell(f"peak, {size}", **about, skipped="a CPU has no unified memory")
                continue
            with told(f"peak, {size}", **about) as row:
                row |= measure(base, shape, way, where)
        del base
        forget()


if __name__ == "__main__":
    main()
