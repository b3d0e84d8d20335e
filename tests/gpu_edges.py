"""Every differentiable op through PyTorch's dispatcher and autograd, on batches of no row, one and several.

    LORASMITH_KERNELS=triton TRITON_INTERPRET=1 python tests/gpu_edges.py

The gradient is that of a sum: one number, broadcast, in strides of 0. On a GPU where there is one, else in Triton's
interpreter; held against plain PyTorch in f64. Says "served by" and the device where all agrees.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lorasmith import ops
from lorasmith.formats import dynamic_map, formats
from lorasmith.ops import gpu

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
WIDTH, OUT, RANK = 32, 16, 4
Function = Callable[..., Tensor]


def seeded(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(DEVICE)


def plain_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weight


def plain_rotary(q: Tensor, k: Tensor, cos: Tensor) -> Tensor:
    first, second = torch.cat([q, k], 1).chunk(2, -1)
    return torch.cat([first, second], -1) * cos[:, None] + torch.cat([-second, first], -1) * cos[:, None]


@cache
def weight() -> tuple[Any, ...]:
    """The parts of a weight in NF4 with nested scales."""
    packed, scales = ops.quantize_blockwise(seeded(OUT, WIDTH), formats["nf4"].codebook(DEVICE), 32)
    codes, *nested = ops.double_quantize(scales)
    return packed, codes, formats["nf4"].codebook(DEVICE), 32, (OUT, WIDTH), *nested, dynamic_map(DEVICE)


def cases(rows: int) -> dict[str, tuple[Function, Function, list[Tensor]]]:
    """Ours, the formula, and the tensors that get gradients."""
    x, a, b, norm = seeded(rows, WIDTH), seeded(RANK, WIDTH), seeded(OUT, RANK), seeded(WIDTH)
    stored, parts = weight()[:5], ops.Nested(*weight()[5:])
    dense = ops.dequantize_blockwise(*stored, torch.float32, nested=parts).double()
    product = ops.BlockwiseProduct((*weight(), parts.blocksize))
    # where every row is a program of its own, the interpreter takes long over many
    some = min(rows, 2)
    labels = torch.arange(some, device=DEVICE)
    heads = [seeded(1, count, some, 16) for count in (3, 1)]
    cos = seeded(1, some, 16)
    return {
        "blockwise linear": (
            lambda x: ops.blockwise_linear(x, *stored, None, nested=parts),
            lambda x: F.linear(x, dense),
            [x],
        ),
        "adapted linear": (
            lambda x, a, b: ops.adapted_linear(x, product, None, [ops.LowRank(a, b, 0.5)]),
            lambda x, a, b: F.linear(x, dense) + 0.5 * x @ a.T @ b.T,
            [x, a, b],
        ),
        "norm": (lambda x, weight: ops.rms_norm(x, weight, 1e-6), plain_norm, [x, norm]),
        "gated": (lambda x, up: ops.gated_activation(x, up, "silu"), lambda x, up: F.silu(x) * up, [x, x.flip(-1)]),
        "gated, packed": (
            lambda both: ops.gated_activation_packed(both, "gelu_tanh"),
            lambda both: F.gelu(both.chunk(2, -1)[0], approximate="tanh") * both.chunk(2, -1)[1],
            [x],
        ),
        "loss": (
            lambda x: ops.token_losses(x, labels),
            lambda x: F.cross_entropy(x, labels, reduction="none"),
            [x[:some]],
        ),
        "rotary": (
            lambda q, k: torch.cat(ops.rotary(q, k, cos, cos), 1),
            lambda q, k: plain_rotary(q, k, cos.double()),
            heads,
        ),
    }


def results(function: Function, tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    leaves = [tensor.to(dtype).requires_grad_() for tensor in tensors]
    y = function(*leaves)
    return [y.detach(), *torch.autograd.grad(y.sum(), leaves)]


def main() -> None:
    for rows in (0, 1, 33):
        for name, (ours, plain, tensors) in cases(rows).items():
            wanted = results(plain, tensors, torch.float64)
            for mine, other in zip(results(ours, tensors, torch.float32), wanted, strict=True):
                torch.testing.assert_close(
                    mine.double(), other, rtol=1e-4, atol=1e-4, msg=lambda text, at=f"{name} of {rows}": f"{at}: {text}"
                )
    print("served by", *gpu.devices())


if __name__ == "__main__":
    main()
