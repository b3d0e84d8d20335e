"""The integer product on a CPU: oneDNN's int8 matmul, where the processor has 512-bit vectors.

Without them torch._int_mm is a scalar loop, slower than the reference.
"""

import torch
from torch import Tensor

from lorasmith.ops.library import implement_native, reference_only


def int8_matmul(a: Tensor, b: Tensor) -> Tensor:
    """a [M, K] times b [N, K] transposed, both int8: int32 [M, N], exact."""
    return torch._int_mm(a, b.t())


if torch.backends.cpu.get_cpu_capability() == "AVX512" and not reference_only():
    implement_native("int8_matmul", "cpu", int8_matmul)
