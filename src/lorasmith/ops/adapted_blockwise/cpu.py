"""A few rows on a CPU in one call of csrc/; everything else as reference.py does it."""

from typing import Any

import torch
from torch import Tensor

from lorasmith.ops.adapted_blockwise import reference
from lorasmith.ops.blockwise_linear.cpu import serves
from lorasmith.ops.library import implement_native
from lorasmith.ops.low_rank.cpu import MOST_RANK
from lorasmith.ops.native import FLOATS, extension, kernels, level, plain


def adapted_blockwise_linear(
    x: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float, *stored: Any
) -> Tensor:
    """y [N, O]; see schema.py."""
    packed, scales, codebook, blocksize, (out_features, in_features), *nested = stored
    f32 = a.dtype == torch.float32 and b.dtype == torch.float32
    if not f32 or a.shape[0] > MOST_RANK or x.dtype not in FLOATS or not serves(x, in_features, codebook):
        return reference.adapted_blockwise_linear(x, bias, a, b, scaling, *stored)
    y = torch.empty((*x.shape[:-1], out_features), dtype=x.dtype)
    wide_bias = None if bias is None else plain(bias.float())
    values = (packed, scales, codebook, blocksize, *nested, plain(x), wide_bias, plain(a), plain(b))
    kernels().adapted_4bit(*values, scaling, y, in_features, torch.get_num_threads(), level())
    return y


if extension() is not None:
    implement_native("adapted_blockwise_linear", "cpu", adapted_blockwise_linear)
