"""A model held still while it is scored."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from lorasmith.models.modes import kept_modes


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module's own mode is restored, also after an error."""
    with kept_modes(model), torch.no_grad():
        model.eval()
        yield
