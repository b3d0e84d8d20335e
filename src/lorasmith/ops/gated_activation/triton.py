"""Gated activations on a GPU, equal to reference.py within a rounding: every value is read and written once.

Rows may lie apart, as the halves of a packed tensor do; tensors without gaps are taken as one long row.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lorasmith.ops.gated_activation import reference
from lorasmith.ops.gpu import FLOATS, current, serve
from lorasmith.ops.tiles import rounded

TILE = 1024
"""Elements of a program: 8 a thread of its four warps, so that each reads 16 bytes of 16-bit values at once."""

# gelu's tanh form: x sigma(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3), since 1 + tanh(u) = 2 sigma(2 u)
_TWICE_ROOT = tl.constexpr(1.5957691216057308)
_CUBIC = tl.constexpr(0.044715)


@triton.jit
def _place(columns, strip):
    """This program's row and columns."""
    strips = tl.cdiv(columns, strip)
    row = tl.program_id(0) // strips
    return row.to(tl.int64), (tl.program_id(0) - row * strips).to(tl.int64) * strip + tl.arange(0, strip)


@triton.jit
def _gelu_argument(gate):
    return _TWICE_ROOT * (gate + _CUBIC * gate * gate * gate)


@triton.jit
def _act(gate, ACTIVATION: tl.constexpr):
    """act(gate) in f32."""
    if ACTIVATION == "silu":
        return gate / (1.0 + tl.exp(-gate))
    else:
        return gate / (1.0 + tl.exp(-_gelu_argument(gate)))


@triton.jit
def _slope(gate, ACTIVATION: tl.constexpr):
    """The derivative of act at gate in f32."""
    if ACTIVATION == "silu":
        open_part = 1.0 / (1.0 + tl.exp(-gate))
        return open_part * (1.0 + gate * (1.0 - open_part))
    else:
        open_part = 1.0 / (1.0 + tl.exp(-_gelu_argument(gate)))
        inner = _TWICE_ROOT * (1.0 + 3.0 * _CUBIC * gate * gate)
        return open_part * (1.0 + gate * (1.0 - open_part) * inner)


@triton.jit
def _forward(gate, up, out, columns, gate_stride, up_stride, out_stride, ACTIVATION: tl.constexpr, STRIP: tl.constexpr):
    row, column = _place(columns, STRIP)
    known = column < columns
    values = tl.load(gate + row * gate_stride + column, mask=known, other=0.0).to(tl.float32)
    others = tl.load(up + row * up_stride + column, mask=known, other=0.0).to(tl.float32)
    dtype: tl.constexpr = out.dtype.element_ty
    product = rounded(_act(values, ACTIVATION), dtype).to(tl.float32) * others
    tl.store(out + row * out_stride + column, rounded(product, dtype), mask=known)


@triton.jit
def _backward(
    grad,
    gate,
    up,
    grad_gate,
    grad_up,
    columns,
    grad_stride,
    gate_stride,
    up_stride,
    grad_gate_stride,
    grad_up_stride,
    ACTIVATION: tl.constexpr,
    STRIP: tl.constexpr,
):
    row, column = _place(columns, STRIP)
    known = column < columns
    upstream = tl.load(grad + row * grad_stride + column, mask=known, other=0.0).to(tl.float32)
    values = tl.load(gate + row * gate_stride + column, mask=known, other=0.0).to(tl.float32)
    others = tl.load(up + row * up_stride + column, mask=known, other=0.0).to(tl.float32)
    dtype: tl.constexpr = grad_up.dtype.element_ty
    of_up = upstream * rounded(_act(values, ACTIVATION), dtype).to(tl.float32)
    tl.store(grad_up + row * grad_up_stride + column, rounded(of_up, dtype), mask=known)
    of_act = rounded(upstream * others, dtype).to(tl.float32)
    of_gate = of_act * _slope(values, ACTIVATION)
    tl.store(grad_gate + row * grad_gate_stride + column, rounded(of_gate, dtype), mask=known)


def gated_activation(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """act(gate) * up [N, I]; see schema.py."""
    if gate.dtype not in FLOATS or gate.numel() == 0:
        return reference.gated_activation(gate, up, activation)
    out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    _launch(_forward, [gate, up], [out], activation)
    return out


def gated_activation_backward_out(
    grad: Tensor, gate: Tensor, up: Tensor, activation: str, grad_gate: Tensor, grad_up: Tensor
) -> None:
    """Fill the gradients of gate and up [N, I]."""
    unbroken = grad_gate.stride(-1) == grad_up.stride(-1) == 1
    if gate.dtype not in FLOATS or gate.numel() == 0 or not unbroken:
        reference.gated_activation_backward_out(grad, gate, up, activation, grad_gate, grad_up)
        return
    _launch(_backward, [grad, gate, up], [grad_gate, grad_up], activation)


def _launch(kernel: triton.JITFunction, ins: list[Tensor], outs: list[Tensor], activation: str) -> None:
    """Run kernel on all rows of ins and outs; the outs are written through views."""
    width = outs[0].shape[-1]
    tensors = [_rows(tensor) for tensor in ins] + [out.view(-1, width) for out in outs]
    rows, columns = tensors[0].shape[0], width
    strides = [tensor.stride(0) for tensor in tensors]
    if all(tensor.is_contiguous() for tensor in tensors):
        rows, columns = 1, rows * width
    with current(ins[0]):
        kernel[(rows * triton.cdiv(columns, TILE),)](*tensors, columns, *strides, ACTIVATION=activation, STRIP=TILE)


def _rows(x: Tensor) -> Tensor:
    """x as [N, I] without a copy where its rows are unbroken, as in halves of one tensor."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(-1) == 1 else rows.contiguous()


serve("gated_activation", gated_activation)
serve("gated_activation_backward_out", gated_activation_backward_out)
