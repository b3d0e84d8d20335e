"""Buffers that a dense weight passes through: one a thread, device and dtype, reused from layer to layer.

On a CPU the page faults of a fresh buffer cost 10 to 20 times the dequantizing itself. Accelerators have a caching
allocator that is ordered by stream, which does the same without our help, so there a fresh tensor is returned.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod

import torch
from torch import Tensor
from torch._guards import active_fake_mode


class _Pool(threading.local):
    """The idle buffers of one thread, flat, by dtype."""

    def __init__(self) -> None:
        self.idle: dict[torch.dtype, Tensor] = {}


_pool = _Pool()


@contextmanager
def borrowed(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Iterator[Tensor]:
    """An uninitialised tensor [*shape] that is the caller's until the block ends, and must not outlive it.

    While borrowed a buffer is out of the pool, so that a nested use gets another one. Under fake tensors (the memory
    plan's) it is one of them, and never pooled.
    """
    if device.type != "cpu" or active_fake_mode() is not None:
        yield torch.empty(shape, dtype=dtype, device=device)
        return
    numel = prod(shape)
    buffer = _pool.idle.pop(dtype, None)
    if buffer is None or buffer.numel() < numel:
        # An inference tensor could not be written to by a later training step.
        with torch.inference_mode(False):
            buffer = torch.empty(numel, dtype=dtype)
    try:
        yield buffer[:numel].view(shape)
    finally:
        kept = _pool.idle.get(dtype)
        if kept is None or kept.numel() < buffer.numel():
            _pool.idle[dtype] = buffer


def release() -> None:
    """Free this thread's idle buffers."""
    _pool.idle.clear()
