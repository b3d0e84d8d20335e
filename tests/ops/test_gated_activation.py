"""Gated activations, tails included: every instruction set against torch, Triton's kernels against the reference."""

import pytest
import torch
from torch.nn import functional as F

from gpu_kernels import triton_kernels
from lorasmith import ops
from lorasmith.ops.gated_activation import reference
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


def gate_up_and_grad(shape, dtype):
    """Ordinary values to those where the functions are flat, and two tensors beside them."""
    spread = torch.tensor([[0.01], [1.0], [10.0], [200.0]])
    return (seeded(*shape) * spread).to(dtype), seeded(*shape).flip(0).to(dtype), seeded(*shape).flip(1).to(dtype)


def assert_within_roundings(mine, other):
    """Within some roundings of f32, or one of a 16-bit value and that seldom."""
    assert mine.dtype == other.dtype
    # torch's gelu cancels in its negative tail: 1 + tanh(u) to 2^-24, times a gate and another tensor's value
    cancelled = 1e-5
    apart, size = (mine.double() - other.double()).abs(), other.double().abs()
    wrong = apart > cancelled
    if mine.dtype == torch.float32:
        assert (apart <= cancelled + 2e-6 * size).all()
    else:
        assert (apart <= cancelled + 2 * torch.finfo(mine.dtype).eps * size).all()
        assert wrong.sum() <= 0.01 * wrong.numel() + 1


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape, packed", [((4, 1), False), ((2, 4, 13), True), ((4, 1500), False), ((4, 1100), True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.usefixtures("poisoned_memory")
def test_triton_gives_what_the_reference_gives(activation, shape, packed, dtype):
    kernels = triton_kernels("gated_activation")
    gate, up, grad = gate_up_and_grad(shape, dtype)
    if packed:
        gate, up = torch.cat((gate, up), -1).chunk(2, -1)
    assert_within_roundings(
        kernels.gated_activation(gate, up, activation), reference.gated_activation(gate, up, activation)
    )
    results = []
    for module in (kernels, reference):
        both = torch.empty(*shape[:-1], 2 * shape[-1], dtype=dtype)
        outs = both.chunk(2, -1) if packed else [torch.empty(shape, dtype=dtype) for _ in range(2)]
        module.gated_activation_backward_out(grad, gate, up, activation, *outs)
        results.append(outs)
    for mine, other in zip(*results, strict=True):
        assert_within_roundings(mine, other)


def test_triton_reads_tensors_with_gaps_and_broadcast_gradients():
    kernels = triton_kernels("gated_activation")
    gate, up, _ = gate_up_and_grad((4, 10), torch.float32)
    grad = torch.ones(1).expand(4, 10)
    made, other = [], []
    for outs, given in ((made, (grad, gate.mT.contiguous().mT, up)), (other, (grad.clone(), gate, up))):
        outs += [torch.empty(4, 10), torch.empty(4, 10)]
        kernels.gated_activation_backward_out(*given, "silu", *outs)
    assert torch.equal(torch.stack(made), torch.stack(other))
