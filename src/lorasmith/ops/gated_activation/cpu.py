"""Gated activations on a CPU through csrc/, in f32 and bf16; other types go to the reference."""

import torch
from torch import Tensor

from lorasmith.ops.gated_activation import reference
from lorasmith.ops.library import implement_native
from lorasmith.ops.native import FLOATS, extension, kernels, level


def gated_activation(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """act(gate) * up [N, I]; see schema.py."""
    if gate.dtype not in FLOATS or gate.numel() == 0:
        return reference.gated_activation(gate, up, activation)
    out = torch.empty(gate.shape, dtype=gate.dtype)
    kernels().gated_activation(_rows(gate), _rows(up), _rows(out), activation, torch.get_num_threads(), level())
    return out


def gated_activation_backward_out(
    grad: Tensor, gate: Tensor, up: Tensor, activation: str, grad_gate: Tensor, grad_up: Tensor
) -> None:
    """Fill the gradients of gate and up [N, I]."""
    if gate.dtype not in FLOATS or gate.numel() == 0:
        reference.gated_activation_backward_out(grad, gate, up, activation, grad_gate, grad_up)
        return
    # views: the results are written through them
    outs = [out.view(-1, out.shape[-1]) for out in (grad_gate, grad_up)]
    values = (_rows(grad.contiguous()), _rows(gate), _rows(up))
    kernels().gated_activation_backward(*values, *outs, activation, torch.get_num_threads(), level())


def _rows(x: Tensor) -> Tensor:
    """x as [N, I] without a copy where its rows are unbroken, as in halves of one tensor."""
    rows = x.detach().reshape(-1, x.shape[-1])
    return rows if rows.stride(-1) == 1 else rows.contiguous()


if extension() is not None:
    implement_native("gated_activation", "cpu", gated_activation)
    implement_native("gated_activation_backward_out", "cpu", gated_activation_backward_out)
