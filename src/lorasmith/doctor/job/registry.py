"""Checks of the data, the tokenizer and the adapted model together."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import nn
from transformers import PreTrainedTokenizerBase

from lorasmith.data import Example
from lorasmith.doctor.finding import Check
from lorasmith.planning import MemoryPlan
from lorasmith.registry import Registry


@dataclass(frozen=True)
class Job:
    """What training will see. The model may stand on the meta device: only shapes and flags are read.

    context is the number of positions that the model was made for, None where it has no limit; available is the free
    memory of the device in bytes and host_available that of the host, None where it cannot be known; new_rows were
    added to the embedding for this run.
    held_out is the number of examples to score, None where it is not known.
    output is the run folder, in which kept_checkpoints stay besides the best one. steps are the run's, None where
    the data decide; warmup is in steps, or below 1 a share of them.
    """

    task: Literal["causal", "classification"]
    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    examples: Sequence[Example]
    context: int | None
    plan: MemoryPlan | None
    available: int | None
    new_rows: int = 0
    held_out: int | None = None
    output: Path | None = None
    kept_checkpoints: int = 2
    steps: int | None = None
    warmup: float = 0
    host_available: int | None = None


job_checks: Registry[Check[Job]] = Registry("check", "lorasmith.doctor.job")
