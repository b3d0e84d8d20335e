"""What the machine can do at most, measured: matrix products, reading and copying memory."""

import time
from collections.abc import Callable

import torch

COUNT = 1 << 26  # floats: 256 MiB, far beyond the caches


def limits() -> dict[str, float]:
    """FLOP/s of an f32 and a bf16 product of 2048 x 2048 x 2048; bytes a second read, and copied (both ways)."""
    source = torch.ones(COUNT)
    target = torch.empty_like(source)
    return {
        "matmul_float32": _matmul(torch.float32),
        "matmul_bfloat16": _matmul(torch.bfloat16),
        "read": 4 * COUNT / _least(lambda: source.sum()),
        "copy": 8 * COUNT / _least(lambda: target.copy_(source)),
    }


def matmul_limit(found: dict[str, float]) -> float:
    """The rate that a step is held against: that of the faster type."""
    return max(found["matmul_float32"], found["matmul_bfloat16"])


def _matmul(dtype: torch.dtype) -> float:
    a, b = (torch.randn(2048, 2048).to(dtype) for _ in range(2))
    return 2 * 2048**3 / _least(lambda: a @ b)


def _least(function: Callable[[], object]) -> float:
    """Seconds of the fastest of several calls; one call where it takes long."""
    times: list[float] = []
    while len(times) < 10 and sum(times) < 2:
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return min(times)
