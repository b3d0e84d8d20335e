"""A few rows with a weight in bf16 on a CPU through csrc/, at the rate at which W is read; the rest as reference.py.

Where the processor has instructions for bf16, PyTorch's own product serves values in it.
"""

import torch
from torch import Tensor

from lorasmith.ops.library import implement_native
from lorasmith.ops.narrow_linear import reference
from lorasmith.ops.native import FLOATS, extension, kernels, level, plain
from lorasmith.ops.precision import product_dtype


def narrow_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """y [N, O]; see schema.py."""
    out_features, in_features = weight.shape
    few = 0 < x.numel() <= kernels().most_skinny_rows * in_features and weight.is_contiguous()
    widened = product_dtype(x.dtype, x.device) == torch.float32 and x.dtype in FLOATS
    if not few or not widened or weight.dtype != torch.bfloat16:
        return reference.narrow_linear(x, weight, bias)
    y_NO = torch.empty((*x.shape[:-1], out_features), dtype=torch.float32)
    kernels().multiply_narrow(plain(x.float()), plain(weight), y_NO, in_features, torch.get_num_threads(), level())
    if bias is not None:
        y_NO += bias
    return y_NO.to(x.dtype)


if extension() is not None:
    implement_native("narrow_linear", "cpu", narrow_linear)
