"""The k-bit quantile codebook: levels that normally distributed weights use equally often."""

import torch
from torch import Tensor

from lorasmith.errors import FormatError


def quantile_codebook(bits: int) -> Tensor:
    """Quantiles of the standard normal distribution with an exact zero, scaled to [-1, 1].

    f32 [2**bits], ascending: 2**(bits-1) positive levels, zero, 2**(bits-1) - 1 negative ones; bits=4 is NF4.
    Raises FormatError unless 2 <= bits <= 8. Source: arXiv 2305.14314, section 3 and appendix E.
    """
    if not 2 <= bits <= 8:
        raise FormatError(f"bits={bits} is outside 2 to 8; use 4, the width of NF4")
    half = 2 ** (bits - 1)
    # The outermost quantile: the mean of the half steps of an even and an odd number of levels, from the end.
    outermost = 1 - (1 / (2 * (2**bits - 1)) + 1 / 2 ** (bits + 1)) / 2
    positive = _upper_quantiles(outermost, half)
    negative = -_upper_quantiles(outermost, half - 1)
    levels = torch.cat([negative, torch.zeros(1, dtype=torch.float64), positive]).sort().values
    return (levels / levels.abs().max()).float()


def _upper_quantiles(outermost: float, count: int) -> Tensor:
    """Inverse normal distribution function at count even steps from outermost towards 1/2, which is left out."""
    return torch.special.ndtri(torch.linspace(outermost, 0.5, count + 1, dtype=torch.float64)[:-1])
