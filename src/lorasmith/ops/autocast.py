"""What torch.autocast asks of a matrix product's inputs."""

import torch
from torch import Tensor


def autocast_inputs(x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """x and bias in the dtype that autocast wants on x's device, unchanged where it is off; bias in x's dtype."""
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        x = x.to(torch.get_autocast_dtype(device))
    return x, bias if bias is None else bias.to(x.dtype)
