"""Gated activations: every instruction set against torch's own functions, their tails included."""

import pytest
import torch
from torch.nn import functional as F

from lorasmith import ops
from lorasmith.ops.gated_activation.schema import ACTIVATIONS

TORCH = {"silu": F.silu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh")}


def seeded(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("columns", [1, 8, 13, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_are_torchs(native_kernels, activation, columns, dtype):
    # from ordinary values to where the functions are flat
    spread = torch.tensor([[0.01], [1.0], [10.0], [200.0]])
    gate, up = (seeded(4, columns) * spread).to(dtype).requires_grad_(), seeded(4, columns).to(dtype).requires_grad_()
    grad = seeded(4, columns).to(dtype)
    y = ops.gated_activation(gate, up, activation)
    made = (y, *torch.autograd.grad(y, (gate, up), grad))
    wide = [tensor.detach().double().requires_grad_() for tensor in (gate, up)]
    expected = TORCH[activation](wide[0]) * wide[1]
    wanted = (expected, *torch.autograd.grad(expected, wide, grad.double()))
    # some roundings of the type
    unit = 2**-7 if dtype == torch.bfloat16 else 2**-18
    for mine, other in zip(made, wanted, strict=True):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine.double(), other, rtol=unit, atol=unit)
