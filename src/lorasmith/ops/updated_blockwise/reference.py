"""The layer's product, then the thin one added to it: the specification, on any device."""

from typing import Any

import torch
from torch import Tensor

from lorasmith.ops.library import implement_reference
from lorasmith.ops.low_rank.schema import add_update
from lorasmith.ops.updated_blockwise import schema  # noqa: F401


def updated_blockwise_linear(x: Tensor, bias: Tensor | None, h: Tensor, b: Tensor, *stored: Any) -> Tensor:
    """y [N, O] in x's type; see schema.py."""
    y_NO = torch.ops.lorasmith.blockwise_linear.default(x, bias, *stored)
    return add_update(y_NO, h, b.T, x.dtype)


def updated_blockwise_linear_backward(grad: Tensor, u: Tensor, a: Tensor, *stored: Any) -> Tensor:
    """The gradient of x [N, I] in the type of that of y [N, O]; see schema.py."""
    grad_NI = torch.ops.lorasmith.blockwise_linear_backward.default(grad, *stored)
    return add_update(grad_NI, u, a, grad.dtype)


implement_reference("updated_blockwise_linear", updated_blockwise_linear)
implement_reference("updated_blockwise_linear_backward", updated_blockwise_linear_backward)
