"""Steps of lorasmith's own training loop on batches made up, timed from batch to batch."""

import dataclasses
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from adapted_models import packed
from measuring import device_used, wait

from lorasmith.models.fused_block import fused_blocks
from lorasmith.models.packed_attention import enable_packing
from lorasmith.training import RunFolder, TrainingSettings, run
from lorasmith.training.optimizers import optimizers


class Missing(Exception):
    """This version of lorasmith has no such setting."""


class _Enough(Exception):
    """All steps that were wanted are taken; leaves the loop before it saves anything."""


@dataclass
class MadeUp:
    """Packed rows of random tokens; notes when each was asked for, and what the whole device had taken then.

    first_length: rows of the first step, where they are to be of another length than the others'.
    """

    rows: int
    length: int
    vocabulary: int
    steps: int
    device: torch.device
    seed: int = 0
    first_length: int | None = None
    asked: list[float] = field(default_factory=list)
    device_used: int = 0

    def __iter__(self) -> Iterator[Any]:
        for step in range(self.steps + 1):
            self.note()
            if step < self.steps:
                length = self.first_length if step == 0 and self.first_length else self.length
                yield packed(tokens(self.seed + step, self.rows, length, self.vocabulary))
        raise _Enough

    def note(self) -> None:
        """A step begins now, or the last one has ended; the optimizer's state is alive."""
        wait(self.device)
        self.device_used = max(self.device_used, device_used(self.device))
        self.asked.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Of each step."""
        return [after - before for before, after in pairwise(self.asked)]

    def epoch_batches(self) -> int:
        return self.steps + 1

    def state_dict(self) -> Mapping[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None:
        raise NotImplementedError("made-up batches have no position to go back to")


def tokens(seed: int, rows: int, length: int, vocabulary: int) -> torch.Tensor:
    return torch.randint(vocabulary, (rows, length), generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Steps:
    """Seconds and losses of the steps in order; the first is a warm-up."""

    seconds: list[float]
    losses: list[float]


def settings_of(**wanted: Any) -> TrainingSettings:
    """Training settings; Missing where this version does not know one of them."""
    known = {each.name for each in dataclasses.fields(TrainingSettings)}
    for name in wanted.keys() - known:
        raise Missing(f"training.{name} is not in this version")
    name = wanted.get("optimizer", "adamw")
    if name not in optimizers:
        raise Missing(f"training.optimizer={name} is not in this version")
    return TrainingSettings(save_every=None, warmup=0, schedule="constant", **wanted)


def take_steps(model: Any, batches: MadeUp, **wanted: Any) -> Steps:
    """The steps that batches hold, by lorasmith's loop with its fused blocks and packed attention.

    Raises Missing for a setting that this version has not, before anything else.
    """
    settings = settings_of(max_steps=batches.steps + 1, **wanted)
    base = model.get_base_model()
    refused = enable_packing(base)
    assert refused is None, refused
    with tempfile.TemporaryDirectory(prefix="lorasmith-gpu-") as folder, fused_blocks(base):
        runs = RunFolder(Path(folder) / "run")
        try:
            run(model, batches, settings, runs)
        except _Enough:
            lines = runs.metrics.read_text().splitlines()
    return Steps(batches.seconds(), [json.loads(line)["loss"] for line in lines])
