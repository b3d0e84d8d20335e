"""Tensors of a CPU that stand for another device's, while the memory of a step there is predicted from shapes.

What a step allocates depends on the kernels of its device and on the types that it multiplies in; those of the machine
that predicts say nothing of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# a plain variable, which compilers can trace
_meant: str | None = None


@contextmanager
def standing_for(kind: str) -> Iterator[None]:
    """While the block runs, tensors on the CPU are taken for those of a device of that type."""
    global _meant
    before, _meant = _meant, kind
    try:
        yield
    finally:
        _meant = before


def meant(device: torch.device) -> str:
    """The type of the device that computing on device is about."""
    return device.type if _meant is None or device.type != "cpu" else _meant
