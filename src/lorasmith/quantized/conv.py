"""A convolution whose kernel is stored quantized."""

from typing import Any, Self

import torch
from torch import Tensor, nn

from lorasmith.errors import FormatError
from lorasmith.ops.precision import product_dtype
from lorasmith.quantized.scheme import Scheme
from lorasmith.quantized.weight import QuantizedWeight


class QuantizedConv(QuantizedWeight):
    """A 1-, 2- or 3-dimensional convolution with its kernel [out, in / groups, *kernel_size] frozen in a format.

    The kernel is dequantized for each product and freed after it; gradients flow to the input and the bias.
    """

    bias: nn.Parameter | None

    def __init__(self, conv: nn.Conv1d | nn.Conv2d | nn.Conv3d, scheme: Scheme) -> None:
        super().__init__(tuple(conv.weight.shape), scheme, conv.weight.dtype, None, "meta")
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.kernel_size, self.stride, self.dilation = conv.kernel_size, conv.stride, conv.dilation
        self.padding, self.groups, self.padding_mode = conv.padding, conv.groups, conv.padding_mode
        bias = None if conv.bias is None else nn.Parameter(conv.bias.detach().clone(), requires_grad=False)
        self.register_parameter("bias", bias)

    @classmethod
    def from_float(cls, conv: nn.Conv1d | nn.Conv2d | nn.Conv3d, scheme: Scheme, name: str = "weight") -> Self:
        """The quantized twin of a dense convolution; name stands in errors.

        Raises FormatError for padding given in words or padding other than with zeros.
        """
        if isinstance(conv.padding, str) or conv.padding_mode != "zeros":
            raise FormatError(
                f"{name}: padding={conv.padding!r}, padding_mode={conv.padding_mode!r} cannot be quantized; "
                "leave this convolution dense"
            )
        twin = cls(conv, scheme)
        twin.quantize_(conv.weight.detach(), name)
        return twin

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, in_channels, *size] -> [batch, out_channels, *size]."""
        dtype = product_dtype(self.working_dtype(x), x.device)
        bias = None if self.bias is None else self.bias.to(dtype)
        if x.dim() == len(self.kernel_size) + 1:
            return self(x[None])[0]
        return _FrozenConv.apply(x.to(dtype), bias, self).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, {self.describe()}"


class _FrozenConv(torch.autograd.Function):
    """Convolution that keeps the quantized kernel, not the dense one, for its backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, layer: QuantizedConv) -> Tensor:
        ctx.layer, ctx.shape = layer, x.shape
        return torch.convolution(x, layer.dequantize(x.dtype), bias, *_geometry(layer))

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        layer = ctx.layer
        wants_x, wants_bias = ctx.needs_input_grad[:2]
        grad_x = None
        if wants_x:
            # the values of x do not enter its own gradient, so an empty tensor of its shape stands for it
            x = grad_y.new_empty(1).expand(ctx.shape)
            weight = layer.dequantize(grad_y.dtype)
            grad_x = torch.ops.aten.convolution_backward(
                grad_y, x, weight, None, *_geometry(layer), [True, False, False]
            )[0]
        others = [axis for axis in range(grad_y.dim()) if axis != 1]
        return grad_x, grad_y.sum(others) if wants_bias else None, None


def _geometry(layer: QuantizedConv) -> tuple[Any, ...]:
    output_padding = [0] * len(layer.kernel_size)
    return layer.stride, layer.padding, layer.dilation, False, output_padding, layer.groups
