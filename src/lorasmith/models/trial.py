"""Trying a model on a few tokens without a trace."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from lorasmith.models.modes import kept_modes


@contextmanager
def trial(model: nn.Module, device: torch.device) -> Iterator[None]:
    """While the block runs, model is in evaluation mode without gradients; modes and random states come back after.

    Where some weights are bf16, autocast lets them meet others (f32 adapters, norms) as it does in training.
    """
    low = any(parameter.dtype == torch.bfloat16 for parameter in model.parameters())
    with (
        kept_modes(model),
        torch.no_grad(),
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        torch.autocast(device.type, torch.bfloat16, enabled=low),
    ):
        model.eval()
        yield
