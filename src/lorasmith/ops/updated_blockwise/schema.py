"""y = x W^T + bias + h B^T and dx = g W + u A, W stored blockwise: the two products of a layer that is being trained.

h and u are the thin products that the step of ops/adapted_linear makes and keeps; all operands are of one type. These
ops are steps of that one, and have no gradient themselves. N rows, I in_features, O out_features, R rank.
"""

from typing import Any

from torch import Tensor

from lorasmith.ops.blockwise.schema import STORED_ARGUMENTS
from lorasmith.ops.library import define, implement_fake

define("updated_blockwise_linear", f"(Tensor x, Tensor? bias, Tensor h, Tensor b, {STORED_ARGUMENTS}) -> Tensor")
define("updated_blockwise_linear_backward", f"(Tensor grad, Tensor u, Tensor a, {STORED_ARGUMENTS}) -> Tensor")


def _fake(x: Tensor, bias: Tensor | None, h: Tensor, b: Tensor, *stored: Any) -> Tensor:
    return x.new_empty(x.shape[0], b.shape[0])


def _fake_backward(grad: Tensor, u: Tensor, a: Tensor, *stored: Any) -> Tensor:
    return grad.new_empty(grad.shape[0], a.shape[1])


implement_fake("updated_blockwise_linear", _fake)
implement_fake("updated_blockwise_linear_backward", _fake_backward)
