"""Batches of a caller's data loader, whose form is the caller's own."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def moved(batch: Any, model: nn.Module) -> Any:
    """batch with its tensors on the device of model: a tensor, a mapping of such, or anything, which stays."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {name: moved(value, model) for name, value in batch.items()}
    return batch
