"""A few rows of an adapted 4-bit layer on a GPU: h = s x A^T in one small kernel, and h B^T added by the product's.

So the layer takes two launches, three where columns are split, and y is written once. Factors of any float type; h and
all sums are f32.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lorasmith.ops.adapted_blockwise import reference
from lorasmith.ops.blockwise_linear.packed import Update, packed_weight
from lorasmith.ops.blockwise_linear.triton import FEW_ROWS, few_rows
from lorasmith.ops.gpu import FLOATS, current, serve

MOST_RANK = 256
COLUMNS = 1024


@triton.jit
def _project(x, a, h, scaling, in_features: tl.constexpr, COLUMNS: tl.constexpr):
    """One element of h a program: a row of A is small, and all its programs run at once."""
    n, r = tl.program_id(0), tl.program_id(1)
    sums = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, in_features, COLUMNS):
        i = start + tl.arange(0, COLUMNS)
        values = tl.load(x + n * in_features + i, mask=i < in_features, other=0.0).to(tl.float32)
        sums += values * tl.load(a + r * in_features + i, mask=i < in_features, other=0.0).to(tl.float32)
    tl.store(h + n * tl.num_programs(1) + r, tl.sum(sums, 0) * scaling)


def project(x: Tensor, a: Tensor, scaling: float) -> Tensor:
    """scaling x A^T of x [N, I] and A [R, I]: h f32 [N, R]."""
    h = torch.empty((x.shape[0], a.shape[0]), dtype=torch.float32, device=x.device)
    with current(x):
        _project[h.shape](x, a.contiguous(), h, scaling, x.shape[1], COLUMNS)
    return h


def adapted_blockwise_linear(
    x: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float, *stored: Any
) -> Tensor:
    """y [N, O]; see schema.py."""
    weight = packed_weight(stored)
    floats = all(tensor.dtype in FLOATS for tensor in (x, a, b))
    few = 0 < x.numel() <= FEW_ROWS * x.shape[-1] and 0 < a.shape[0] <= MOST_RANK
    if weight is None or not floats or not few:
        return reference.adapted_blockwise_linear(x, bias, a, b, scaling, *stored)
    x_NI = x.reshape(-1, weight.in_features).contiguous()
    update = Update(project(x_NI, a, scaling), b.contiguous())
    return few_rows(x_NI, bias, weight, update).view(*x.shape[:-1], weight.out_features)


serve("adapted_blockwise_linear", adapted_blockwise_linear)
