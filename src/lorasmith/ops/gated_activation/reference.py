"""Gated activations in plain PyTorch: the specification, on every device. Backward rounds where autograd would."""

import torch
from torch import Tensor
from torch.nn import functional as F

from lorasmith.ops.library import implement_reference


def gated_activation(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """act(gate) * up [N, I]; see schema.py."""
    return _act(gate, activation) * up


def gated_activation_backward_out(
    grad: Tensor, gate: Tensor, up: Tensor, activation: str, grad_gate: Tensor, grad_up: Tensor
) -> None:
    """Fill the gradients of gate and up [N, I]."""
    torch.mul(grad, _act(gate, activation), out=grad_up)
    of_act = grad * up
    if activation == "silu":
        grad_gate.copy_(torch.ops.aten.silu_backward(of_act, gate))
    else:
        grad_gate.copy_(torch.ops.aten.gelu_backward(of_act, gate, approximate="tanh"))


def _act(gate: Tensor, activation: str) -> Tensor:
    return F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")


implement_reference("gated_activation", gated_activation)
implement_reference("gated_activation_backward_out", gated_activation_backward_out)
