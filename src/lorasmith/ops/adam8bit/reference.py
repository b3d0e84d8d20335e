"""AdamW's step on 8-bit moments in plain PyTorch: the specification, on every device.

Every product and sum is rounded to f32 on its own, in the order in which it stands here.
"""

import torch
from torch import Tensor

from lorasmith.ops.adam8bit.blocks import BLOCKSIZE, from_blocks, to_blocks
from lorasmith.ops.adam8bit.schema import Constants, constants
from lorasmith.ops.library import implement_reference

PART, PART_BYTES = 1 << 20, 40
"""Elements at a time, whole blocks, and about the bytes of each that are held on the way."""


def adam8bit_(
    weight: Tensor,
    master: Tensor | None,
    gradient: Tensor,
    mean_codes: Tensor,
    mean_scales: Tensor,
    mean_levels: Tensor,
    mean_edges: Tensor,
    square_codes: Tensor,
    square_scales: Tensor,
    square_levels: Tensor,
    square_edges: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    step: int,
    learning_rate: float,
    weight_decay: float,
) -> None:
    """See schema.py."""
    c = constants(beta1, beta2, eps, step, learning_rate, weight_decay)
    flat, g = weight.reshape(-1), gradient.reshape(-1)
    kept = flat if master is None else master.view(-1)
    for first in range(0, flat.numel(), PART):
        part, blocks = slice(first, first + PART), slice(first // BLOCKSIZE, (first + PART) // BLOCKSIZE)
        mean = from_blocks(mean_codes[part], mean_scales[blocks], mean_levels)
        square = from_blocks(square_codes[part], square_scales[blocks], square_levels)
        wide = moved(current(flat[part], kept[part]), g[part].float(), mean, square, c)
        kept[part], flat[part] = wide, wide.to(weight.dtype)
        mean_codes[part], mean_scales[blocks] = to_blocks(mean, mean_edges)
        square_codes[part], square_scales[blocks] = to_blocks(square, square_edges)
    if not weight.is_contiguous():
        weight.copy_(flat.view_as(weight))


def current(weight: Tensor, kept: Tensor) -> Tensor:
    """What is kept in f32, or the weight where that is not its rounding."""
    return kept if weight.dtype == kept.dtype else torch.where(kept.to(weight.dtype) == weight, kept, weight.float())


def moved(wide: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, c: Constants) -> Tensor:
    """The f32 weight after the step; mean and square are taken on in place."""
    mean.mul_(c.beta1).add_(gradient * c.rest1)
    square.mul_(c.beta2).add_((gradient * gradient).mul_(c.rest2))
    # in f64, since torch's f32 square root on a CPU (MKL's) is not the nearest number in a fifth of all cases
    denominator = square.double().sqrt().float().mul_(c.root).add_(c.eps)
    return (wide * c.decay).sub_((mean / denominator).mul_(c.rate))


implement_reference("adam8bit_", adam8bit_)
