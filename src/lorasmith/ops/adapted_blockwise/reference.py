"""The layer's product, then the two thin ones: the specification, on any device."""

from typing import Any

import torch
from torch import Tensor

from lorasmith.ops.adapted_blockwise import schema  # noqa: F401
from lorasmith.ops.library import implement_reference
from lorasmith.ops.low_rank.schema import add_update, project
from lorasmith.ops.precision import factor_dtype, product_dtype, without_autocast


def adapted_blockwise_linear(
    x: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float, *stored: Any
) -> Tensor:
    """y [N, O]; see schema.py."""
    wide = product_dtype(x.dtype, x.device)
    exact = factor_dtype(wide, x.device)
    with without_autocast(x.device):
        x_NI = x.reshape(-1, x.shape[-1])
        wide_bias = None if bias is None else bias.to(wide)
        y_NO = torch.ops.lorasmith.blockwise_linear.default(x_NI.to(wide), wide_bias, *stored)
        y_NO = add_update(y_NO, project(x_NI, a.to(exact), scaling), b.to(exact).T, x.dtype)
    return y_NO.view(*x.shape[:-1], b.shape[0])


implement_reference("adapted_blockwise_linear", adapted_blockwise_linear)
