"""Trying a model on a few tokens without a trace."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from lorasmith.models.modes import kept_modes


@contextmanager
def trial(model: nn.Module, device: torch.device) -> Iterator[None]:
    """While the block runs, model is in evaluation mode without gradients; modes and random states come back after.

    Where some weights are in 16 bits, autocast lets them meet others (f32 adapters, norms) as it does in training.
    """
    found = {parameter.dtype for parameter in model.parameters()}
    low = next((dtype for dtype in (torch.bfloat16, torch.float16) if dtype in found), None)
    with (
        kept_modes(model),
        torch.no_grad(),
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        torch.autocast(device.type, low, enabled=low is not None),
    ):
        model.eval()
        yield
