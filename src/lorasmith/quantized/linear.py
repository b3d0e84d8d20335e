"""A linear layer whose weight is stored quantized."""

from typing import Self

import torch
from torch import Tensor, nn

from lorasmith.ops import BlockwiseProduct, OffsetProduct, Product, RowwiseProduct, blockwise_linear, rowwise_linear
from lorasmith.ops.autocast import autocast_type
from lorasmith.ops.block_offset import add_offset
from lorasmith.ops.blockwise.schema import nested_arguments
from lorasmith.quantized.scheme import Scheme
from lorasmith.quantized.weight import QuantizedWeight


class QuantizedLinear(QuantizedWeight):
    """y = x W^T + b with W [out_features, in_features] frozen in a number format; the bias stays dense.

    Gradients flow to x and to the bias, never to W. int8_threshold is LLM.int8()'s: input features that reach it are
    multiplied in the working type. Source: QLoRA, arXiv 2305.14314, eq. 5; LLM.int8(), arXiv 2208.07339, section 3.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool,
        scheme: Scheme,
        *,
        dtype: torch.dtype = torch.float32,
        compute_dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__((out_features, in_features), scheme, dtype, compute_dtype, device)
        self.in_features = in_features
        self.out_features = out_features
        self.int8_threshold = 6.0
        value = nn.Parameter(torch.zeros(out_features, dtype=dtype, device=device), requires_grad=False)
        self.register_parameter("bias", value if bias else None)

    @classmethod
    def from_float(cls, linear: nn.Linear, scheme: Scheme, name: str = "weight") -> Self:
        """The quantized twin of a dense layer; name stands in errors."""
        weight = linear.weight.detach()
        twin = cls(
            linear.in_features, linear.out_features, linear.bias is not None, scheme, dtype=weight.dtype, device="meta"
        )
        twin.quantize_(weight, name)
        if linear.bias is not None:
            twin.bias = nn.Parameter(linear.bias.detach().clone(), requires_grad=False)
        return twin

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features] in the type of x."""
        dtype = self.working_dtype(x)
        bias = None if self.bias is None else self.bias.to(dtype)
        scales, nested = self.scale_values()
        if self.rowwise:
            codes = self.weight.view(torch.int8)
            y = rowwise_linear(x.to(dtype), codes, scales, bias, self.int8_threshold)
        else:
            y = blockwise_linear(
                x.to(dtype),
                self.weight,
                scales,
                self.codebook(),
                self.scheme.blocksize,
                (self.out_features, self.in_features),
                bias,
                nested=nested,
            )
        zeros = self.zero_values()
        if zeros is not None:
            y = add_offset(y, x.to(dtype), zeros)
        return y.to(x.dtype) if autocast_type(x.device) is None else y

    def product(self) -> Product:
        """Multiplying by the stored weight, for a step that does more than this layer."""
        scales, nested = self.scale_values()
        if self.rowwise:
            return RowwiseProduct(self.weight.view(torch.int8), scales, self.int8_threshold)
        shape = (self.out_features, self.in_features)
        stored = (self.weight, scales, self.codebook(), self.scheme.blocksize, shape)
        product = BlockwiseProduct((*stored, *nested_arguments(nested)))
        zeros = self.zero_values()
        return product if zeros is None else OffsetProduct(product, zeros)

    def extra_repr(self) -> str:
        bias = self.bias is not None
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={bias}, {self.describe()}"
