"""The compiled kernels: whether they are here, and which of the processor's instruction sets they use.

The extension is loaded after torch (which library.py imports), so that it shares the OpenMP runtime torch brings.
"""

import os
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from lorasmith.errors import DeviceError
from lorasmith.ops.library import chosen_kernels

try:
    from lorasmith.ops import _native
except ImportError:
    _native = None  # type: ignore[assignment]


FLOATS = (torch.float32, torch.bfloat16)
"""The types of values that every kernel reads and writes."""


def extension() -> ModuleType | None:
    """lorasmith.ops._native, or None where the package was installed without it or it is switched off."""
    return _native if chosen_kernels() == "auto" else None


def kernels() -> ModuleType:
    """The extension, for code that runs only where it was found."""
    assert _native is not None, "a native kernel was registered without its extension"
    return _native


def plain(tensor: Tensor) -> Tensor:
    """tensor as the extension reads one: contiguous, and outside of autograd."""
    return (tensor.detach() if tensor.requires_grad else tensor).contiguous()


@cache
def level() -> str:
    """The instruction set in use: LORASMITH_CPU_LEVEL, or the best that this processor has. Read once.

    Raises DeviceError for one that this build or processor lacks.
    """
    usable = kernels().levels()
    wanted = os.environ.get("LORASMITH_CPU_LEVEL") or usable[-1]
    if wanted not in usable:
        raise DeviceError(f"LORASMITH_CPU_LEVEL={wanted} cannot be used here; choose one of: {', '.join(usable)}")
    return wanted


def absence() -> str:
    """Why the reference kernels serve the CPU."""
    if chosen_kernels() != "auto":
        return f"LORASMITH_KERNELS={chosen_kernels()}"
    return "installed without the C++ extension (LORASMITH_NATIVE=0, or it was built for another Python)"
