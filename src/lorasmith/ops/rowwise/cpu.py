"""The integer product on a CPU: oneDNN's int8 matmul where the processor has 512-bit vectors, csrc/ elsewhere.

Without them torch._int_mm is a scalar loop, slower than the reference.
"""

import torch
from torch import Tensor

from lorasmith.ops.library import chosen_kernels, implement_native
from lorasmith.ops.native import extension, kernels, level, plain


def onednn_int8_matmul(a: Tensor, b: Tensor) -> Tensor:
    """a [M, K] times b [N, K] transposed, both int8: int32 [M, N], exact."""
    return torch._int_mm(a, b.t())


def int8_matmul(a: Tensor, b: Tensor) -> Tensor:
    """a [M, K] times b [N, K] transposed, both int8: int32 [M, N], exact; b is read once for up to 32 rows of a."""
    width = a.shape[1]
    if width == 0:
        return torch.zeros(a.shape[0], b.shape[0], dtype=torch.int32)
    y_MN = torch.empty(a.shape[0], b.shape[0], dtype=torch.int32)
    kernels().multiply_int8(plain(a), plain(b), y_MN, width, torch.get_num_threads(), level())
    return y_MN


def uses_onednn() -> bool:
    """Whether torch._int_mm serves the product here."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and chosen_kernels() == "auto"


if uses_onednn():
    implement_native("int8_matmul", "cpu", onednn_int8_matmul)
elif extension() is not None:
    implement_native("int8_matmul", "cpu", int8_matmul)
