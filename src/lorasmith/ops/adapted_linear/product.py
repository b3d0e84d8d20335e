"""What a frozen weight does in a linear layer, whatever stores it: x W^T forward, g W backward.

N rows, I in_features, O out_features. Inputs and outputs have the type that the product is computed in.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from lorasmith.ops.block_offset import add_offset, add_offset_gradient
from lorasmith.ops.library import NATIVE_KERNELS
from lorasmith.ops.scratch import borrowed

# up to so many rows a GPU may multiply faster from the codes, which no sum can be added to
_FEW_ROWS = 256


class Product(Protocol):
    """Multiplying by a frozen weight W [O, I]."""

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x W^T + bias of x [N, I], a new tensor [N, O]."""

    def backward(self, grad: Tensor) -> Tensor:
        """grad W of grad [N, O], a new tensor [N, I]."""

    def backward_onto_(self, grad: Tensor, out: Tensor) -> None:
        """Add grad W of grad [N, O] to out [N, I], which is of the type of grad."""

    def adapted(self, x: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float) -> Tensor | None:
        """x W^T + bias + scaling x A^T B^T of x [..., I] in x's type, where one operation does it without gradients."""

    def updated(self, x: Tensor, bias: Tensor | None, h: Tensor, b: Tensor) -> Tensor | None:
        """x W^T + bias + h B^T of x [N, I], h [N, R] and B [O, R] of one type, where one operation does it."""

    def updated_backward(self, grad: Tensor, u: Tensor, a: Tensor) -> Tensor | None:
        """grad W + u A of grad [N, O], u [N, R] and A [R, I] of one type, where one operation does it."""


@runtime_checkable
class Multiplier(Protocol):
    """A frozen linear layer that stores its weight in a way of its own."""

    def product(self) -> Product:
        """Multiplying by the weight."""

    def working_dtype(self, x: Tensor) -> torch.dtype:
        """The type that the layer converts x to."""


class _Apart:
    """A product with which updates share no operation."""

    def adapted(self, x: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float) -> Tensor | None:
        return None

    def updated(self, x: Tensor, bias: Tensor | None, h: Tensor, b: Tensor) -> Tensor | None:
        return None

    def updated_backward(self, grad: Tensor, u: Tensor, a: Tensor) -> Tensor | None:
        return None


@dataclass(frozen=True)
class DenseProduct(_Apart):
    """W as an ordinary matrix; in another type than the operands it passes through the reused buffer."""

    weight: Tensor

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if self.weight.dtype == x.dtype:
            return F.linear(x, self.weight, bias)
        return torch.ops.lorasmith.narrow_linear.default(x, self.weight, bias)

    def backward(self, grad: Tensor) -> Tensor:
        if self.weight.dtype == grad.dtype:
            return grad @ self.weight
        with borrowed(tuple(self.weight.shape), grad.dtype, grad.device) as weight_OI:
            return grad @ weight_OI.copy_(self.weight)

    def backward_onto_(self, grad: Tensor, out: Tensor) -> None:
        if self.weight.dtype == grad.dtype:
            out.addmm_(grad, self.weight)
            return
        with borrowed(tuple(self.weight.shape), grad.dtype, grad.device) as weight_OI:
            out.addmm_(grad, weight_OI.copy_(self.weight))


@dataclass(frozen=True)
class BlockwiseProduct:
    """W stored in blocks; stored are the arguments of the op blockwise_linear behind x and bias."""

    stored: Sequence[Any]

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return torch.ops.lorasmith.blockwise_linear.default(x, bias, *self.stored)

    def backward(self, grad: Tensor) -> Tensor:
        return torch.ops.lorasmith.blockwise_linear_backward.default(grad, *self.stored)

    def backward_onto_(self, grad: Tensor, out: Tensor) -> None:
        if len(grad) <= _FEW_ROWS:
            out.add_(self.backward(grad))
            return
        with borrowed(tuple(self.stored[4]), grad.dtype, grad.device) as weight_OI:
            torch.ops.lorasmith.dequantize_blockwise_out.default(*self.stored, weight_OI)
            out.addmm_(grad, weight_OI)

    def adapted(self, x: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float) -> Tensor | None:
        return torch.ops.lorasmith.adapted_blockwise_linear.default(x, bias, a, b, scaling, *self.stored)

    def updated(self, x: Tensor, bias: Tensor | None, h: Tensor, b: Tensor) -> Tensor | None:
        if x.device.type not in NATIVE_KERNELS["updated_blockwise_linear"]:
            return None
        return torch.ops.lorasmith.updated_blockwise_linear.default(x, bias, h, b, *self.stored)

    def updated_backward(self, grad: Tensor, u: Tensor, a: Tensor) -> Tensor | None:
        if grad.device.type not in NATIVE_KERNELS["updated_blockwise_linear_backward"]:
            return None
        return torch.ops.lorasmith.updated_blockwise_linear_backward.default(grad, u, a, *self.stored)


@dataclass(frozen=True)
class OffsetProduct:
    """W stored in blocks that have an offset each: another product, and zeros f32 [O, G] on the pooled input."""

    product: BlockwiseProduct
    zeros: Tensor

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return add_offset(self.product.forward(x, bias), x, self.zeros)

    def backward(self, grad: Tensor) -> Tensor:
        return add_offset_gradient(self.product.backward(grad), grad, self.zeros)

    def backward_onto_(self, grad: Tensor, out: Tensor) -> None:
        out.add_(self.backward(grad))

    def adapted(self, x: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float) -> Tensor | None:
        y = self.product.adapted(x, bias, a, b, scaling)
        return None if y is None else add_offset(y, x, self.zeros)

    def updated(self, x: Tensor, bias: Tensor | None, h: Tensor, b: Tensor) -> Tensor | None:
        y = self.product.updated(x, bias, h, b)
        return None if y is None else add_offset(y, x, self.zeros)

    def updated_backward(self, grad: Tensor, u: Tensor, a: Tensor) -> Tensor | None:
        grad_x = self.product.updated_backward(grad, u, a)
        return None if grad_x is None else add_offset_gradient(grad_x, grad, self.zeros)


@dataclass(frozen=True)
class RowwiseProduct(_Apart):
    """W stored in int8 with a scale a row; see the op rowwise_linear."""

    codes: Tensor
    absmax: Tensor
    threshold: float

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return torch.ops.lorasmith.rowwise_linear.default(x, bias, self.codes, self.absmax, self.threshold)

    def backward(self, grad: Tensor) -> Tensor:
        return torch.ops.lorasmith.rowwise_linear_backward.default(grad, self.codes, self.absmax)

    def backward_onto_(self, grad: Tensor, out: Tensor) -> None:
        out.add_(self.backward(grad))
