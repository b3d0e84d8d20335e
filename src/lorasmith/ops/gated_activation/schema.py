"""y = act(gate) * up, act silu (SwiGLU) or gelu in its tanh form (GeGLU), in the rounding of transformers' modules.

Kept for the backward are gate and up, or the one tensor that holds both; act(gate) is made again.
N rows (any leading axes), I columns. Source: arXiv 2002.05202.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lorasmith.errors import FormatError
from lorasmith.ops.library import define, implement_fake

Activation = Literal["silu", "gelu_tanh"]
ACTIVATIONS: tuple[Activation, ...] = ("silu", "gelu_tanh")

define("gated_activation", "(Tensor gate, Tensor up, str activation) -> Tensor")
define(
    "gated_activation_backward_out",
    "(Tensor grad, Tensor gate, Tensor up, str activation, Tensor(a!) grad_gate, Tensor(b!) grad_up) -> ()",
)


def gated_activation(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    """act(gate) * up of gate and up [N, I], of one type. Gradients go to both.

    Raises FormatError where they do not fit together or the activation is not known.
    """
    _check(activation)
    if gate.shape != up.shape or gate.dtype != up.dtype or not gate.dtype.is_floating_point:
        raise FormatError(
            f"gate is {gate.dtype} {list(gate.shape)}, up {up.dtype} {list(up.shape)}; they must be alike and float"
        )
    return _Apart.apply(gate, up, activation)


def gated_activation_packed(gate_up: Tensor, activation: Activation) -> Tensor:
    """act(gate) * up [N, I] of gate_up [N, 2I], which holds the gate in its first half."""
    _check(activation)
    if gate_up.shape[-1] % 2 or not gate_up.dtype.is_floating_point:
        raise FormatError(f"gate_up is {gate_up.dtype} {list(gate_up.shape)}; it must be float of two equal halves")
    return _Packed.apply(gate_up, activation)


def _check(activation: str) -> None:
    if activation not in ACTIVATIONS:
        raise FormatError(f"activation={activation!r} is not known; use one of {', '.join(ACTIVATIONS)}")


class _Apart(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: str) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return torch.ops.lorasmith.gated_activation.default(gate, up, activation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        gate, up = ctx.saved_tensors
        grads = gate.new_empty(gate.shape), up.new_empty(up.shape)
        torch.ops.lorasmith.gated_activation_backward_out.default(grad, gate, up, ctx.activation, *grads)
        return *grads, None


class _Packed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, activation: str) -> Tensor:
        ctx.save_for_backward(gate_up)
        ctx.activation = activation
        return torch.ops.lorasmith.gated_activation.default(*gate_up.chunk(2, -1), activation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (gate_up,) = ctx.saved_tensors
        grad_both = gate_up.new_empty(gate_up.shape)
        halves = (*gate_up.chunk(2, -1), ctx.activation, *grad_both.chunk(2, -1))
        torch.ops.lorasmith.gated_activation_backward_out.default(grad, *halves)
        return grad_both, None


implement_fake("gated_activation", lambda gate, up, activation: gate.new_empty(gate.shape))
implement_fake("gated_activation_backward_out", lambda *arguments: None)
