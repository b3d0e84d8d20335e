"""Root mean square norms in plain PyTorch: the specification, on every device."""

import torch
from torch import Tensor

from lorasmith.ops.library import implement_reference


def rms_norm(x: Tensor, weight: Tensor, eps: float, plus_one: bool, rounds_first: bool) -> tuple[Tensor, Tensor]:
    """y [N, D] and the factors f32 [N]; see schema.py."""
    rms = torch.rsqrt(x.float().square().mean(-1) + eps)
    return (_normed(x, rms, rounds_first) * _factor(weight, plus_one)).to(x.dtype), rms


def rms_norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor, rms: Tensor, plus_one: bool, rounds_first: bool, weight_trains: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of x [N, D] and weight [D]; an empty one unless weight_trains."""
    grad_normed = grad.float() * _factor(weight, plus_one)
    if rounds_first:
        grad_normed = grad_normed.to(x.dtype).float()
    wide = x.float()
    share = rms.square() * (grad_normed * wide).mean(-1)
    grad_x = (rms[..., None] * (grad_normed - wide * share[..., None])).to(x.dtype)
    if not weight_trains:
        return grad_x, weight.new_empty(0)
    products = grad.float() * _normed(x, rms, rounds_first)
    return grad_x, products.reshape(-1, weight.shape[0]).sum(0).to(weight.dtype)


def _normed(x: Tensor, rms: Tensor, rounds_first: bool) -> Tensor:
    normed = x.float() * rms[..., None]
    return normed.to(x.dtype).float() if rounds_first else normed


def _factor(weight: Tensor, plus_one: bool) -> Tensor:
    return weight.float() + 1 if plus_one else weight.float()


implement_reference("rms_norm", rms_norm)
implement_reference("rms_norm_backward", rms_norm_backward)
