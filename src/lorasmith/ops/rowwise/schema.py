"""Row-wise int8: names, arguments, checks, shapes and the gradient.

codes int8 [O, I], absmax f32 [O], value = code x absmax / 127. B batch (any leading axes), I in_features, O
out_features. Gradients go to x, through the dequantized weight, and to bias. Source: arXiv 2208.07339.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lorasmith.errors import FormatError
from lorasmith.ops.autocast import autocast_inputs
from lorasmith.ops.library import define, implement_fake

OUTLIER_THRESHOLD = 6.0

define("quantize_rowwise", "(Tensor weight) -> (Tensor, Tensor)")
define("dequantize_rowwise", "(Tensor codes, Tensor absmax, ScalarType dtype) -> Tensor")
define("int8_matmul", "(Tensor a, Tensor b) -> Tensor")
define("rowwise_linear", "(Tensor x, Tensor? bias, Tensor codes, Tensor absmax, float threshold) -> Tensor")
define("rowwise_linear_backward", "(Tensor grad, Tensor codes, Tensor absmax) -> Tensor")


def quantize_rowwise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes int8 [O, I] and absmax f32 [O] of a float weight [O, I], bit-equal to bitsandbytes'.

    The weight is rounded to float16 first, as theirs: a row beyond 65,504 or with NaN gets an absmax that is not
    finite, which the caller refuses. Raises FormatError unless weight is a float matrix.
    """
    if not weight.dtype.is_floating_point or weight.dim() != 2 or weight.numel() == 0:
        raise FormatError(f"weight is {weight.dtype} {list(weight.shape)}; int8 needs a float matrix [out, in]")
    return torch.ops.lorasmith.quantize_rowwise.default(weight.detach())


def dequantize_rowwise(codes: Tensor, absmax: Tensor, dtype: torch.dtype) -> Tensor:
    """code x absmax / 127 in f32, rounded once to dtype [O, I]. Raises FormatError where the parts do not fit."""
    _check_rowwise(codes, absmax)
    return torch.ops.lorasmith.dequantize_rowwise.default(codes, absmax, dtype)


def rowwise_linear(
    x: Tensor, codes: Tensor, absmax: Tensor, bias: Tensor | None, threshold: float = OUTLIER_THRESHOLD
) -> Tensor:
    """x [B, I] times the stored W, plus bias [O]: y [B, O] in x's dtype.

    Input features with any |x| >= threshold are multiplied in x's dtype by their dequantized columns, the others in
    int8 with exact integer sums. threshold 0 means none is. Raises FormatError where x, bias and weight do not fit.
    """
    _check_rowwise(codes, absmax)
    out_features, in_features = codes.shape
    if x.shape[-1] != in_features or (bias is not None and tuple(bias.shape) != (out_features,)):
        held = None if bias is None else list(bias.shape)
        raise FormatError(f"x {list(x.shape)} and bias {held} do not fit a weight of shape {list(codes.shape)}")
    x, bias = autocast_inputs(x, bias)
    return _RowwiseLinear.apply(x, bias, codes, absmax, threshold)


class _RowwiseLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, codes: Tensor, absmax: Tensor, threshold: float) -> Tensor:
        ctx.save_for_backward(codes, absmax)
        return torch.ops.lorasmith.rowwise_linear.default(x, bias, codes, absmax, threshold)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BO: Tensor) -> tuple[Tensor | None, ...]:
        grad_x = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.ops.lorasmith.rowwise_linear_backward.default(grad_BO, *ctx.saved_tensors)
        if ctx.needs_input_grad[1]:
            grad_bias = grad_BO.reshape(-1, grad_BO.shape[-1]).sum(0)
        return grad_x, grad_bias, None, None, None


def _check_rowwise(codes: Tensor, absmax: Tensor) -> None:
    if codes.dtype != torch.int8 or codes.dim() != 2:
        raise FormatError(f"codes is {codes.dtype} {list(codes.shape)}; view the stored bytes as int8 [out, in]")
    if absmax.dtype != torch.float32 or absmax.numel() != codes.shape[0] or absmax.device != codes.device:
        raise FormatError(
            f"absmax is {absmax.dtype} with {absmax.numel()} elements on {absmax.device}; "
            f"it must be float32 with {codes.shape[0]}, one a row, on {codes.device}"
        )


implement_fake(
    "quantize_rowwise",
    lambda weight: (
        torch.empty_like(weight, dtype=torch.int8),
        weight.new_empty(weight.shape[0], dtype=torch.float32),
    ),
)
implement_fake("dequantize_rowwise", lambda codes, absmax, dtype: torch.empty_like(codes, dtype=dtype))
implement_fake("int8_matmul", lambda a, b: a.new_empty(a.shape[0], b.shape[0], dtype=torch.int32))
implement_fake("rowwise_linear", lambda x, bias, codes, absmax, threshold: x.new_empty(*x.shape[:-1], codes.shape[0]))
implement_fake("rowwise_linear_backward", lambda grad, codes, absmax: grad.new_empty(*grad.shape[:-1], codes.shape[1]))
