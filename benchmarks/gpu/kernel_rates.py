"""Kernels one by one against what the device can do, PyTorch's own operations and bitsandbytes'.

share is of the copy rate where as much is written as read or more, else of the read rate; both from this very run.
Bytes are those that cannot be avoided.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from measuring import Call, Place, copies, forget, place, rates, rotating, told
from torch import Tensor
from torch.nn import functional

from lorasmith import ops
from lorasmith.quantized import QuantizedLinear, Scheme

ROWS = (1, 2, 4, 8, 16, 32, 64)
LLAMA_8B = ((4096, 4096), (14336, 4096), (4096, 14336), (1024, 4096))


@dataclass(frozen=True)
class Job:
    """One operation. ways: name -> a function that makes the n-th copy of its data and a call on it; ours first."""

    name: str
    size: int
    limit: Literal["copy", "read"]
    ways: Mapping[str, Callable[[int], Call]]


def random(*size: int, where: Place, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    generator = torch.Generator(where.device).manual_seed(seed)
    return torch.empty(size, device=where.device, dtype=dtype).normal_(generator=generator)


def stored(shape: tuple[int, int], where: Place, seed: int) -> QuantizedLinear:
    layer = QuantizedLinear(shape[1], shape[0], False, Scheme("nf4"), dtype=torch.bfloat16, device="meta")
    layer.quantize_(random(*shape, where=where, seed=seed))
    return layer


def theirs(shape: tuple[int, int], where: Place, seed: int) -> tuple[Tensor, Any]:
    from bitsandbytes.functional import quantize_4bit

    return quantize_4bit(random(*shape, where=where, seed=seed), compress_statistics=True, quant_type="nf4")


def quantizing(shape: tuple[int, int], where: Place) -> Job:
    numel = shape[0] * shape[1]

    def mine(seed: int) -> Call:
        x, codebook = random(*shape, where=where, seed=seed), Scheme("nf4").number_format.codebook(where.device)
        return lambda: ops.quantize_blockwise(x, codebook, 64)

    def peer(seed: int) -> Call:
        from bitsandbytes.functional import quantize_4bit

        x = random(*shape, where=where, seed=seed)
        return lambda: quantize_4bit(x, quant_type="nf4")

    name = f"quantize bf16 to NF4, {shape[0]}x{shape[1]}"
    return Job(name, 2 * numel + numel // 2 + numel // 16, "copy", {"ours": mine, "bitsandbytes": peer})


def dequantizing(shape: tuple[int, int], where: Place) -> Job:
    numel = shape[0] * shape[1]

    def mine(seed: int) -> Call:
        layer = stored(shape, where, seed)
        return lambda: layer.dequantize(torch.bfloat16)

    def peer(seed: int) -> Call:
        from bitsandbytes.functional import dequantize_4bit

        packed, state = theirs(shape, where, seed)
        return lambda: dequantize_4bit(packed, state)

    name = f"dequantize NF4 + DQ to bf16, {shape[0]}x{shape[1]}"
    return Job(name, 2 * numel + numel // 2 + numel // 64, "copy", {"ours": mine, "bitsandbytes": peer})


def multiplying(rows: int, shape: tuple[int, int], where: Place) -> Job:
    numel = shape[0] * shape[1]

    def mine(seed: int) -> Call:
        layer, x = stored(shape, where, seed), random(rows, shape[1], where=where)
        return lambda: layer(x)

    def peer(seed: int) -> Call:
        from bitsandbytes import matmul_4bit

        packed, state = theirs(shape, where, seed)
        x = random(rows, shape[1], where=where)
        return lambda: matmul_4bit(x, packed.t(), state)

    def plain(seed: int) -> Call:
        weight, x = random(*shape, where=where, seed=seed), random(rows, shape[1], where=where)
        return lambda: functional.linear(x, weight)

    size = numel // 2 + numel // 64 + 2 * rows * sum(shape)
    ways = {"ours": mine, "bitsandbytes": peer, "PyTorch, bf16 weight": plain}
    return Job(f"{rows} rows by packed NF4 + DQ, {shape[0]}x{shape[1]}", size, "read", ways)


def losing(rows: int, vocabulary: int, where: Place) -> Job:
    def mine(seed: int) -> Call:
        logits, labels = random(rows, vocabulary, where=where, seed=seed), _labels(rows, vocabulary, where)
        return lambda: ops.token_losses_(logits, labels, gradient=True)

    def plain(seed: int) -> Call:
        logits = random(rows, vocabulary, where=where, seed=seed).requires_grad_()
        labels = _labels(rows, vocabulary, where)
        return lambda: torch.autograd.grad(functional.cross_entropy(logits, labels, reduction="sum"), logits)

    # read twice, for the sum and the gradient, and written once
    name = f"loss and gradient of logits, {rows}x{vocabulary}"
    return Job(name, 3 * 2 * rows * vocabulary, "copy", {"ours": mine, "PyTorch": plain})


def _labels(rows: int, vocabulary: int, where: Place) -> Tensor:
    return torch.arange(rows, device=where.device) % vocabulary


def norming(rows: int, width: int, where: Place) -> Job:
    def mine(seed: int) -> Call:
        x, weight = random(rows, width, where=where, seed=seed).requires_grad_(), random(width, where=where)
        grad = random(rows, width, where=where)
        return lambda: torch.autograd.grad(ops.rms_norm(x, weight, 1e-5), x, grad)

    def plain(seed: int) -> Call:
        x, weight = random(rows, width, where=where, seed=seed).requires_grad_(), random(width, where=where)
        grad = random(rows, width, where=where)
        return lambda: torch.autograd.grad(functional.rms_norm(x, (width,), weight, 1e-5), x, grad)

    # forward reads x and writes y; backward reads both x and the gradient and writes one
    return Job(f"RMSNorm and gradient, {rows}x{width}", 5 * 2 * rows * width, "copy", {"ours": mine, "PyTorch": plain})


def gating(rows: int, width: int, where: Place) -> Job:
    def mine(seed: int) -> Call:
        gate, up = (random(rows, width, where=where, seed=seed + part).requires_grad_() for part in range(2))
        grad = random(rows, width, where=where)
        return lambda: torch.autograd.grad(ops.gated_activation(gate, up, "silu"), (gate, up), grad)

    def plain(seed: int) -> Call:
        gate, up = (random(rows, width, where=where, seed=seed + part).requires_grad_() for part in range(2))
        grad = random(rows, width, where=where)
        return lambda: torch.autograd.grad(functional.silu(gate) * up, (gate, up), grad)

    # forward reads two and writes one; backward reads three and writes two
    return Job(f"SwiGLU and gradient, {rows}x{width}", 8 * 2 * rows * width, "copy", {"ours": mine, "PyTorch": plain})


def jobs(where: Place) -> Sequence[Callable[[], Job]]:
    if where.tiny:
        shapes, rows, tokens, width, vocabulary = ((64, 128),), (1, 4), 8, 64, 256
    else:
        shapes, rows, tokens, width, vocabulary = LLAMA_8B, ROWS, 8192, 4096, 128256
    large = shapes[1 % len(shapes)]
    return [
        *(partial(dequantizing, shape, where) for shape in shapes),
        *(partial(multiplying, 1, shape, where) for shape in shapes),
        *(partial(multiplying, count, large, where) for count in rows[1:]),
        partial(quantizing, large, where),
        partial(losing, tokens // 8, vocabulary, where),
        partial(norming, tokens, width, where),
        partial(gating, tokens, width * 7 // 2, where),
    ]


def main() -> None:
    where = place(__doc__)
    limits = rates(where)
    forget()
    for make in jobs(where):
        job = make()
        for way, prepare in job.ways.items():
            with told(job.name, way=way) as row:
                row |= rotating([prepare(seed) for seed in range(copies(job.size, where))], where)
                row["bytes_per_second"] = job.size / row["seconds"]
                row |= {"share": row["bytes_per_second"] / limits[job.limit], "of": job.limit}


if __name__ == "__main__":
    main()
