"""What the machine can do at most, measured: matrix products, reading and copying memory."""

import time
from collections.abc import Callable

import torch

COUNT = 1 << 26  # floats: 256 MiB, far beyond the caches
MOST_SECONDS = 10.0  # of one product


def limits() -> dict[str, float]:
    """FLOP/s of an f32 and a bf16 product of 2048 x 2048 x 2048 (512 where that is slow), and memory_limits."""
    rates = {"matmul_float32": _matmul(torch.float32), "matmul_bfloat16": _matmul(torch.bfloat16)}
    return rates | memory_limits()


def memory_limits() -> dict[str, float]:
    """Bytes a second read, and copied (both ways)."""
    source = torch.ones(COUNT)
    target = torch.empty_like(source)
    return {
        "read": 4 * COUNT / _least(lambda: source.sum()),
        "copy": 8 * COUNT / _least(lambda: target.copy_(source)),
    }


def matmul_limit(found: dict[str, float]) -> float:
    """The rate that a step is held against: that of the faster type."""
    return max(found["matmul_float32"], found["matmul_bfloat16"])


def _matmul(dtype: torch.dtype) -> float:
    # without instructions for its type a product of the full size takes a minute, and its rate is no limit of anything
    small = _product(512, dtype)
    return small if 2 * 2048**3 / small > MOST_SECONDS else _product(2048, dtype)


def _product(size: int, dtype: torch.dtype) -> float:
    """FLOP/s of a product of two square matrices."""
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    return 2 * size**3 / _least(lambda: a @ b)


def _least(function: Callable[[], object]) -> float:
    """Seconds of the fastest of several calls; one call where it takes long."""
    times: list[float] = []
    while len(times) < 10 and sum(times) < 2:
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return min(times)
