"""y = x W^T + bias with W stored blockwise. Gradients go to x and bias; W is frozen.

B batch (any leading axes), I in_features, O out_features. Backward dequantizes W a second time, so that no dense copy
outlives its matmul; of the input nothing is kept.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lorasmith.errors import FormatError
from lorasmith.ops.autocast import autocast_inputs
from lorasmith.ops.blockwise.schema import STORED_ARGUMENTS, Nested, check_stored, nested_arguments
from lorasmith.ops.library import define, implement_fake

define("blockwise_linear", f"(Tensor x, Tensor? bias, {STORED_ARGUMENTS}) -> Tensor")
define("blockwise_linear_backward", f"(Tensor grad, {STORED_ARGUMENTS}) -> Tensor")


def blockwise_linear(
    x: Tensor,
    packed: Tensor,
    scales: Tensor,
    codebook: Tensor,
    blocksize: int,
    shape: tuple[int, int],
    bias: Tensor | None,
    *,
    nested: Nested | None = None,
) -> Tensor:
    """x [B, I] in its dtype times the stored W of shape (O, I), plus bias [O]: y [B, O].

    Raises FormatError where x, the bias or the stored parts do not fit the shape.
    """
    check_stored(packed, scales, codebook, blocksize, shape, nested)
    if len(shape) != 2 or x.shape[-1] != shape[1] or (bias is not None and tuple(bias.shape) != (shape[0],)):
        held = None if bias is None else list(bias.shape)
        raise FormatError(f"x {list(x.shape)} and bias {held} do not fit a weight of shape {list(shape)}")
    x, bias = autocast_inputs(x, bias)
    return _BlockwiseLinear.apply(x, bias, packed, scales, codebook, blocksize, tuple(shape), *nested_arguments(nested))


class _BlockwiseLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, *stored: Any) -> Tensor:
        packed, scales, codebook, blocksize, shape, nested_scales, nested_offset, nested_codebook, nested_blocksize = (
            stored
        )
        ctx.save_for_backward(packed, scales, codebook, nested_scales, nested_offset, nested_codebook)
        ctx.sizes = (blocksize, shape, nested_blocksize)
        return torch.ops.lorasmith.blockwise_linear.default(x, bias, *stored)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BO: Tensor) -> tuple[Tensor | None, ...]:
        grad_x = grad_bias = None
        if ctx.needs_input_grad[0]:
            packed, scales, codebook, *nested = ctx.saved_tensors
            blocksize, shape, nested_blocksize = ctx.sizes
            stored = (packed, scales, codebook, blocksize, shape, *nested, nested_blocksize)
            grad_x = torch.ops.lorasmith.blockwise_linear_backward.default(grad_BO, *stored)
        if ctx.needs_input_grad[1]:
            grad_bias = grad_BO.reshape(-1, grad_BO.shape[-1]).sum(0)
        return grad_x, grad_bias, *[None] * 9


def _fake_forward(x: Tensor, bias: Tensor | None, *stored: Any) -> Tensor:
    shape = stored[4]
    return x.new_empty(*x.shape[:-1], shape[0])


def _fake_backward(grad: Tensor, *stored: Any) -> Tensor:
    shape = stored[4]
    return grad.new_empty(*grad.shape[:-1], shape[1])


implement_fake("blockwise_linear", _fake_forward)
implement_fake("blockwise_linear_backward", _fake_backward)
