"""The memory plan against the peak of PyTorch's allocator, on 20 configurations of small Llama shapes."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import random_llama
from make_checkpoint import SHAPES, Shape
from measuring import Place, forget, peak, place, tell, told
from random_llama import TINY, shallower
from training_runs import MadeUp, Missing, settings_of, take_steps

from lorasmith.models.fused_block import fused_blocks
from lorasmith.planning import MemoryPlan, PlanSettings, plan
from lorasmith.training import optimizers as package
from lorasmith.training.precision import autocast_dtype

SMALL, LARGE, WIDE = SHAPES["134m"], shallower(SHAPES["1b"], 8), Shape(4, 4096, 14336, 32, 8, 128256)
# what one configuration may take
SECONDS = 6.0
CHECKPOINTED = {"gradient_checkpointing": True}
OFFLOADED = {**CHECKPOINTED, "offload_checkpoints": True}


@dataclass(frozen=True)
class Configuration:
    shape: Shape
    rows: int
    length: int
    rank: int = 16
    quantized: bool = True
    wide: bool = True
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        form = "NF4" if self.quantized else "bf16"
        size = f"{self.shape.layers} x {self.shape.hidden}, {form}, {self.rows} x {self.length}, rank {self.rank}"
        told = [f"{key} {value}" for key, value in self.settings.items()]
        return ", ".join([size, "f32 adapters" if self.wide else "bf16 adapters", *told])


CONFIGURATIONS = (
    Configuration(SMALL, 4, 256),
    Configuration(SMALL, 4, 256, quantized=False),
    Configuration(SMALL, 16, 256),
    Configuration(SMALL, 1, 4096),
    Configuration(SMALL, 4, 1024, settings=CHECKPOINTED),
    Configuration(SMALL, 4, 1024, quantized=False, settings=CHECKPOINTED),
    Configuration(SMALL, 4, 1024, rank=256),
    Configuration(LARGE, 1, 512),
    Configuration(LARGE, 4, 512),
    Configuration(LARGE, 4, 512, quantized=False),
    Configuration(LARGE, 1, 4096, settings=CHECKPOINTED),
    Configuration(LARGE, 8, 1024, settings=CHECKPOINTED),
    Configuration(LARGE, 8, 1024, wide=False, settings=CHECKPOINTED),
    Configuration(LARGE, 1, 512, rank=256, settings={"optimizer": "adamw8bit"}),
    Configuration(LARGE, 1, 512, rank=256, wide=False, settings={"optimizer": "adamw8bit"}),
    Configuration(LARGE, 1, 16384, settings=OFFLOADED),
    Configuration(WIDE, 1, 2048),
    Configuration(WIDE, 1, 2048, settings=CHECKPOINTED),
    Configuration(WIDE, 4, 2048, settings=CHECKPOINTED),
    Configuration(WIDE, 1, 16384, rank=64, settings=CHECKPOINTED),
)
TOYS = (Configuration(TINY, 2, 16, 4), Configuration(TINY, 2, 16, 4, quantized=False, settings=CHECKPOINTED))


def predicted(model: Any, rows: int, length: int, where: Place, settings: dict[str, Any]) -> MemoryPlan:
    """The plan for model, which may stand anywhere, as lorasmith train makes it; tensors alone."""
    known = {each.name for each in dataclasses.fields(PlanSettings)}
    wanted = {
        "gradient_checkpointing": settings.get("gradient_checkpointing", False),
        "offload_checkpoints": settings.get("offload_checkpoints", False),
        "autocast": autocast_dtype(model, "auto"),
        "baseline": 0,
        "device": where.device.type,
    }
    if "optimizer" in known:
        wanted["optimizer"] = package.optimizer_memory(settings_of(**settings), where.device)
    base = model.get_base_model()
    with fused_blocks(base, where.device):
        return plan(base, PlanSettings(rows, length, **{key: value for key, value in wanted.items() if key in known}))


def compare(one: Configuration, where: Place) -> dict[str, Any]:
    make = random_llama.ours if one.quantized else random_llama.dense
    model = random_llama.adapted(make(one.shape, where.device), one.rank, wide=one.wide)
    foreseen = predicted(model, one.rows, one.length, where, one.settings)
    batches = MadeUp(one.rows, one.length, one.shape.vocabulary, 2, where.device)
    with peak(where.device) as found:
        take_steps(model, batches, **one.settings)
    ratio = foreseen.total / found["allocated"]
    return {**found, "predicted": foreseen.total, "components": dict(foreseen.components), "ratio": ratio}


def main() -> None:
    where = place(__doc__)
    ratios = []
    for one in TOYS if where.tiny else CONFIGURATIONS:
        try:
            settings_of(**one.settings)
        except Missing as reason:
            tell("plan", way=one.name, skipped=str(reason))
            continue
        if where.left < SECONDS:
            tell("plan", way=one.name, skipped="no time left")
            continue
        with told("plan", way=one.name) as row:
            row |= compare(one, where)
            ratios.append(row["ratio"])
        forget()
    if ratios:
        tell("plan, all", configurations=len(ratios), worst=max(abs(ratio - 1) for ratio in ratios))


if __name__ == "__main__":
    main()
