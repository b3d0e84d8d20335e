"""Name, arguments and checks of AdamW's step on 8-bit moments. It has no gradient: it is what gradients are for.

weight of n elements in f32, bf16 or f16; gradient of its shape, in any of these; codes uint8 [n] and scales f32
[ceil(n / 256)] of each moment, row by row as blocks.py says. A weight in 16 bits has a master: f32 [n] beside f16;
beside bf16 what the weight leaves of it, int16 [n] (ops/remainder.py).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lorasmith.errors import FormatError
from lorasmith.ops.adam8bit.blocks import BLOCKSIZE, signed_map, unsigned_map
from lorasmith.ops.blockwise.schema import check_part
from lorasmith.ops.library import define, implement_fake
from lorasmith.ops.remainder import REMAINDER

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_NEEDS = "this weight needs"

define(
    "adam8bit_",
    "(Tensor(a!) weight, Tensor(b!)? master, Tensor gradient, "
    "Tensor(c!) mean_codes, Tensor(d!) mean_scales, Tensor mean_levels, Tensor mean_edges, "
    "Tensor(e!) square_codes, Tensor(f!) square_scales, Tensor square_levels, Tensor square_edges, "
    "float beta1, float beta2, float eps, int step, float learning_rate, float weight_decay) -> ()",
)


@dataclass(frozen=True)
class AdamStep:
    """The numbers of one step; step counts from 1."""

    beta1: float
    beta2: float
    eps: float
    step: int
    learning_rate: float
    weight_decay: float


@dataclass(frozen=True)
class Moment:
    """codes uint8 [n] and scales f32 [ceil(n / 256)] of a running mean."""

    codes: Tensor
    scales: Tensor


def adam8bit_(
    weight: Tensor, gradient: Tensor, mean: Moment, square: Moment, step: AdamStep, master: Tensor | None = None
) -> None:
    """Move weight (and its master), and the running means of the gradient and its square, in place.

    m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2,
    w = (1 - rate x decay) w - rate / (1 - beta1^t) x m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
    with m and v as they are before they are rounded into their blocks. What somebody has written into weight since the
    last step counts: in f16 where it is not its master's rounding; in bf16 with its remainder, at most half a last bit.
    Raises FormatError where shapes, types or devices do not fit together.
    Source: arXiv 2110.02861, section 2; arXiv 1711.05101, algorithm 2.
    """
    _check_weight(weight, gradient, master)
    for name, moment in (("mean", mean), ("square", square)):
        check_part(f"{name}.codes", moment.codes, torch.uint8, weight.numel(), weight.device, _NEEDS)
        blocks = -(-weight.numel() // BLOCKSIZE)
        check_part(f"{name}.scales", moment.scales, torch.float32, blocks, weight.device, _NEEDS)
    signed, unsigned = signed_map(weight.device), unsigned_map(weight.device)
    torch.ops.lorasmith.adam8bit_.default(
        weight,
        master,
        gradient,
        *(mean.codes, mean.scales, signed.levels, signed.edges),
        *(square.codes, square.scales, unsigned.levels, unsigned.edges),
        *(step.beta1, step.beta2, step.eps, step.step, step.learning_rate, step.weight_decay),
    )
    # what is kept of a parameter's value, and autograd, go by its version
    torch.autograd.graph.increment_version(weight)


@dataclass(frozen=True)
class Constants:
    """What a step multiplies with, made in double precision and rounded to f32 once."""

    beta1: float
    rest1: float
    beta2: float
    rest2: float
    root: float
    eps: float
    decay: float
    rate: float


class State(NamedTuple):
    """A moment as an op is given it: codes and scales, and the levels and edges of its map."""

    codes: Tensor
    scales: Tensor
    levels: Tensor
    edges: Tensor


def parts_of(arguments: tuple[Any, ...]) -> tuple[State, State, Constants]:
    """The mean, the square and the constants of a step, from what an op is given behind the gradient."""
    return State(*arguments[:4]), State(*arguments[4:8]), constants(*arguments[8:])


def constants(
    beta1: float, beta2: float, eps: float, step: int, learning_rate: float, weight_decay: float
) -> Constants:
    """The constants of a step with an op's arguments."""
    root = (1 - beta2**step) ** -0.5
    rate = learning_rate / (1 - beta1**step)
    return Constants(beta1, 1 - beta1, beta2, 1 - beta2, root, eps, 1 - learning_rate * weight_decay, rate)


def _check_weight(weight: Tensor, gradient: Tensor, master: Tensor | None) -> None:
    if weight.dtype not in FLOATS or weight.numel() == 0:
        raise FormatError(f"weight is {weight.dtype} {list(weight.shape)}; it must be f32, bf16 or f16, and not empty")
    if gradient.shape != weight.shape or gradient.dtype not in FLOATS or gradient.device != weight.device:
        raise FormatError(
            f"gradient is {gradient.dtype} {list(gradient.shape)} on {gradient.device}; a weight "
            f"{list(weight.shape)} on {weight.device} needs one of its shape there, in f32, bf16 or f16"
        )
    if (master is None) != (weight.dtype == torch.float32):
        raise FormatError(f"a weight in {weight.dtype} has {'no' if master is None else 'a'} master; 16 bits need one")
    if master is not None:
        dtype = REMAINDER if weight.dtype == torch.bfloat16 else torch.float32
        check_part("master", master, dtype, weight.numel(), weight.device, _NEEDS)


implement_fake("adam8bit_", lambda *arguments: None)
