"""What torch.autocast asks of a matrix product's inputs."""

import torch
from torch import Tensor

# asked once: torch 2.11 cannot trace the question
_KINDS = frozenset(kind for kind in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(kind))


def autocast_type(device: torch.device) -> torch.dtype | None:
    """The dtype that autocast multiplies in on device; None where it is off, or there is none (meta)."""
    kind = device.type
    on = kind in _KINDS and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if on else None


def autocast_inputs(x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """x and bias in the dtype that autocast wants on x's device, unchanged where it is off; bias in x's dtype."""
    x = x.to(autocast_type(x.device) or x.dtype)
    return x, bias if bias is None else bias.to(x.dtype)
