"""Checks of where a run works and writes: they need nothing but the recipe."""

from dataclasses import dataclass
from pathlib import Path

import torch

from lorasmith.doctor.finding import Check
from lorasmith.registry import Registry


@dataclass(frozen=True)
class Place:
    """The run folder, the device, the type of the activations (None: the model's), whether layers' inputs leave it."""

    output: Path
    device: torch.device
    dtype: torch.dtype | None
    offloads: bool = False


place_checks: Registry[Check[Place]] = Registry("check", "lorasmith.doctor.place")
