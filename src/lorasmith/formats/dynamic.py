"""The 8-bit dynamic maps: codes whose exponent and fraction share seven bits, or all eight (arXiv 1511.04561)."""

from functools import cache

import torch
from torch import Tensor

from lorasmith.formats.lasting import lasting

DECADES = 7


def dynamic_map(device: torch.device | str = "cpu") -> Tensor:
    """f32 [256], ascending, from -0.993 to 1, bit-equal to bitsandbytes' signed map; not to be written to.

    Decade e = 0 .. 6 spans 10**(e-7) to 10**(e-6) with 2**e levels of either sign, the midpoints of equal intervals;
    zero and one complete the 256. Source: arXiv 2110.02861, section 2.2.
    """
    return _made(torch.device(device))


@cache
def _made(device: torch.device) -> Tensor:
    with lasting():
        decades = [_decade(exponent, 2**exponent) for exponent in range(DECADES)]
        return _ascending(*decades, *(-decade for decade in decades)).to(device)


@cache
def unsigned_dynamic_map(device: torch.device | str = "cpu") -> Tensor:
    """f32 [256], ascending, from 0 to 1, bit-equal to bitsandbytes' unsigned map; not to be written to.

    As dynamic_map, with the sign's bit given to the fraction: 2**(e+1) levels in decade e. It is for numbers that are
    never negative, as Adam's second moment. Source: arXiv 2110.02861, section 2.2.
    """
    with lasting():
        return _ascending(*(_decade(exponent, 2 ** (exponent + 1)) for exponent in range(DECADES))).to(device)


def _ascending(*levels: Tensor) -> Tensor:
    """The levels with zero and one among them."""
    return torch.cat([*levels, torch.tensor([0.0, 1.0])]).sort().values


def _decade(exponent: int, count: int) -> Tensor:
    """The positive levels of one decade, f32 [count]; every step in f32, since the bits must agree."""
    boundaries = torch.linspace(0.1, 1, count + 1, dtype=torch.float32)
    midpoints = (boundaries[:-1] + boundaries[1:]) / 2.0
    return 10.0 ** (exponent - DECADES + 1) * midpoints
