"""AdamW's step on 8-bit moments in plain PyTorch: the specification, on every device.

Every product and sum is rounded to f32 on its own, in the order in which it stands here.
"""

from typing import Any

from torch import Tensor

from lorasmith.ops.adam8bit.blocks import BLOCKSIZE, from_blocks, to_blocks
from lorasmith.ops.adam8bit.schema import Constants, parts_of
from lorasmith.ops.library import implement_reference
from lorasmith.ops.remainder import keep_, whole

PART, PART_BYTES = 1 << 20, 40
"""Elements at a time, whole blocks, and about the bytes of each that are held on the way."""


def adam8bit_(weight: Tensor, master: Tensor | None, gradient: Tensor, *arguments: Any) -> None:
    """See schema.py."""
    kept_mean, kept_square, c = parts_of(arguments)
    flat, g = weight.reshape(-1), gradient.reshape(-1)
    kept = None if master is None else master.view(-1)
    for first in range(0, flat.numel(), PART):
        part, blocks = slice(first, first + PART), slice(first // BLOCKSIZE, (first + PART) // BLOCKSIZE)
        mean, square = (from_blocks(m.codes[part], m.scales[blocks], m.levels) for m in (kept_mean, kept_square))
        before = flat[part] if kept is None else whole(flat[part], kept[part])
        wide = moved(before, g[part].float(), mean, square, c)
        flat[part] = wide.to(weight.dtype)
        if kept is not None:
            keep_(kept[part], wide, flat[part])
        for moment, values in ((kept_mean, mean), (kept_square, square)):
            moment.codes[part], moment.scales[blocks] = to_blocks(values, moment.edges)
    if not weight.is_contiguous():
        weight.copy_(flat.view_as(weight))


def moved(wide: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, c: Constants) -> Tensor:
    """The f32 weight after the step; mean and square are taken on in place."""
    mean.mul_(c.beta1).add_(gradient * c.rest1)
    square.mul_(c.beta2).add_((gradient * gradient).mul_(c.rest2))
    # in f64, since torch's f32 square root on a CPU (MKL's) is not the nearest number in a fifth of all cases; Apple's
    # GPUs have no f64
    exact = square if square.device.type == "mps" else square.double()
    denominator = exact.sqrt().float().mul_(c.root).add_(c.eps)
    return (wide * c.decay).sub_((mean / denominator).mul_(c.rate))


implement_reference("adam8bit_", adam8bit_)
