"""The type in which a matrix product is computed, where it is not that of its operands."""

from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch

from lorasmith.ops.autocast import autocast_type
from lorasmith.ops.stand_in import meant


@cache
def bfloat16_instructions() -> bool:
    """Whether this processor multiplies bfloat16 fast: PyTorch has oneDNN, and that has kernels for it."""
    # builds without oneDNN lack the op
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def product_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The type to multiply values of dtype in on device.

    On a CPU without instructions for 16-bit types PyTorch's products fall to loops of 0.3 to 20 GFLOP/s where f32 does
    80 a core (AVX2, measured), so there 16-bit values are widened to f32 for the product and rounded once after it.
    """
    if meant(device) != "cpu":
        return dtype
    narrow = dtype == torch.float16 or (dtype == torch.bfloat16 and not bfloat16_instructions())
    return torch.float32 if narrow else dtype


def factor_dtype(wide: torch.dtype, device: torch.device) -> torch.dtype:
    """The type of A and B beside products in wide: a CPU's kernels take f32 beside 16-bit values; elsewhere wide."""
    return torch.promote_types(wide, torch.float32) if meant(device) == "cpu" else wide


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A block in which products are computed in the type of their operands."""
    if autocast_type(device) is None:
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
