"""A few rows straight from the codes on a CPU, through csrc/; everything else as reference.py does it.

W is read once and packed, an eighth of its bytes in f32, so that decoding is as fast as memory and not as a product.
"""

from typing import Any

import torch
from torch import Tensor

from lorasmith.ops.blockwise.schema import bits_of
from lorasmith.ops.blockwise_linear import reference
from lorasmith.ops.library import implement_native
from lorasmith.ops.native import FLOATS, extension, kernels, level, plain


def serves(x: Tensor, in_features: int, codebook: Tensor) -> bool:
    """Whether x has few enough rows, and W codes and a width that the kernel takes."""
    rows = x.numel() // in_features
    return 0 < rows <= kernels().most_skinny_rows and in_features % 32 == 0 and bits_of(codebook) == 4


def blockwise_linear(x: Tensor, bias: Tensor | None, *stored: Any) -> Tensor:
    """y [B, O]; see schema.py."""
    packed, scales, codebook, blocksize, (out_features, in_features), *nested = stored
    if not serves(x, in_features, codebook) or x.dtype == torch.float64:
        return reference.blockwise_linear(x, bias, *stored)
    rows = x.numel() // in_features
    y_BO = torch.empty(rows, out_features, dtype=torch.float32)
    values = plain(x if x.dtype in FLOATS else x.float())
    parts = (packed, scales, codebook, blocksize, *nested)
    kernels().multiply_4bit(*parts, values, y_BO, in_features, torch.get_num_threads(), level())
    if bias is not None:
        y_BO += bias
    return y_BO.to(x.dtype).view(*x.shape[:-1], out_features)


if extension() is not None:
    implement_native("blockwise_linear", "cpu", blockwise_linear)
