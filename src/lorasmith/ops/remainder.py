"""An f32 number as the nearest bfloat16 and what that leaves: the copy in f32 of a bf16 weight in 2 bytes instead of 4.

bfloat16 is the upper half of f32. So the bits of both, read as integers, differ by at most 2**15, an int16; of numbers
halfway between two bfloat16 the upper half of those that are rounded down lose one unit in f32's last place.
"""

import torch
from torch import Tensor

REMAINDER = torch.int16
_MOST = 2**15 - 1


def whole(weight: Tensor, master: Tensor) -> Tensor:
    """weight in 16 bits as f32, with what its master keeps: of bf16 the remainder int16, else the f32 numbers.

    An f32 master is returned itself, after it has taken what somebody has written into weight: where that is not its
    rounding.
    """
    if master.dtype == REMAINDER:
        return joined(weight, master)
    return torch.where(master.to(weight.dtype) == weight, master, weight.float(), out=master)


def keep_(master: Tensor, wide: Tensor, weight: Tensor) -> None:
    """Let master keep of wide f32 what weight, its rounding, does not say."""
    master.copy_(remainder_of(wide, weight) if master.dtype == REMAINDER else wide)


def remainder_of(wide: Tensor, narrow: Tensor) -> Tensor:
    """What narrow bf16, the rounding of wide f32, leaves of it: int32 within int16, of their shape."""
    return _upper(narrow).neg_().add_(wide.view(torch.int32)).clamp_(max=_MOST)


def joined(narrow: Tensor, remainder: Tensor) -> Tensor:
    """The f32 numbers that narrow bf16 and remainder int16 stand for, of one shape.

    A narrow zero is zero whatever it leaves: somebody has written it there, or the number was below all of bf16's.
    """
    return _upper(narrow).add_(remainder).view(torch.float32).masked_fill_(narrow == 0, 0.0)


def _upper(narrow: Tensor) -> Tensor:
    """The bits of narrow as the upper half of int32."""
    return narrow.view(torch.int16).to(torch.int32).bitwise_left_shift_(16)
