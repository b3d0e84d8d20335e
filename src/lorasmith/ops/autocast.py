"""What torch.autocast asks of a matrix product's inputs."""

import torch
from torch import Tensor


def autocast_inputs(x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """x and bias in the dtype that autocast wants on x's device, unchanged where it is off; bias in x's dtype."""
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    return x, bias if bias is None else bias.to(x.dtype)
