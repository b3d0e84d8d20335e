"""The term of a linear layer that comes from one offset for each block of columns: y = sum(x over the block) Z^T.

A weight W = levels x scales + Z, Z constant over blocks of columns, needs no kernel of its own: beside the product with
levels and scales stands a thin one, of the pooled input with Z. B any leading axes, I in_features, G = I / block.
"""

import torch
from torch import Tensor
from torch.nn import functional

from lorasmith.ops.precision import without_autocast


def pooled(x_BI: Tensor, groups: int) -> Tensor:
    """The sums f32 [..., G] over equal stretches of x [..., I]."""
    return x_BI.unflatten(-1, (groups, -1)).sum(dim=-1, dtype=torch.float32)


def add_offset(y_BO: Tensor, x_BI: Tensor, zeros_OG: Tensor) -> Tensor:
    """y [..., O] plus the term of zeros f32 [O, G] on x [..., I]; summed in f32, in the type of y."""
    with without_autocast(x_BI.device):
        return y_BO + functional.linear(pooled(x_BI, zeros_OG.shape[1]), zeros_OG).to(y_BO.dtype)


def add_offset_gradient(grad_x_BI: Tensor, grad_BO: Tensor, zeros_OG: Tensor) -> Tensor:
    """The gradient [..., I] of x with that of the offset's term added, from that of y [..., O]."""
    with without_autocast(grad_BO.device):
        sums = (grad_BO.float() @ zeros_OG).to(grad_x_BI.dtype)
    width = grad_x_BI.shape[-1] // zeros_OG.shape[1]
    return grad_x_BI + sums.repeat_interleave(width, dim=-1)
