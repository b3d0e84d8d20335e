"""The scales of a weight's blocks that fit a target best while its codes stay: least squares under the inputs' moments.

With V the levels and S the scale of each element, ||(T - V S) X||^2 is quadratic in the scales; a few steps of
conjugate gradients, preconditioned with the diagonal, go most of the way and work for blocks of any shape, also those
that run across rows. I in_features, O out_features, K blocks.
"""

import torch
from torch import Tensor

from lorasmith.quantized.rounding.grid import Grid

STEPS = 6
# a scale moves by this factor at most: a block of almost nothing would otherwise take any scale
_RANGE = (0.5, 2.0)


def fitted_scales(
    values_IO: Tensor, target_IO: Tensor, scales_K: Tensor, grid: Grid, hessian: Tensor, steps: int = STEPS
) -> Tensor:
    """Scales [K], starting from scales_K, for levels [I, O] towards target [I, O] under hessian [I, I]."""
    residual = grid.by_block(values_IO * (hessian @ (target_IO - values_IO * grid.spread(scales_K))))
    diagonal = grid.by_block(values_IO.square() * hessian.diagonal()[:, None])
    inverse = torch.where(diagonal > 0, 1 / diagonal, 0)
    fitted, preconditioned = scales_K.clone(), inverse * residual
    direction, power = preconditioned, residual @ preconditioned
    for _ in range(steps):
        image = grid.by_block(values_IO * (hessian @ (values_IO * grid.spread(direction))))
        curvature = direction @ image
        if not curvature > 0:
            break
        length = power / curvature
        fitted += length * direction
        residual = residual - length * image
        preconditioned = inverse * residual
        power, before = residual @ preconditioned, power
        direction = preconditioned + (power / before) * direction
    low, high = _RANGE
    return torch.where(scales_K > 0, torch.clamp(fitted, low * scales_K, high * scales_K), scales_K)
