"""Triton kernels: which devices they serve here, and how they are launched.

Triton's interpreter (TRITON_INTERPRET=1, read when triton is imported) runs the same kernels on CPU tensors. With
LORASMITH_KERNELS=triton they then serve the CPU in place of its own, which is how they are tested without a GPU.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from lorasmith.errors import DeviceError
from lorasmith.ops.library import Device, chosen_kernels, implement_native

try:
    import triton
except ImportError:
    triton = None

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
"""The types of values that every Triton kernel reads and writes."""

EXACT: dict[str, Any] = {"enable_fp_fusion": False}
"""Launch options for kernels whose results are bit-equal to the reference: no fused multiply-add."""


def interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def devices() -> tuple[Device, ...]:
    """Device types that the Triton kernels serve in this process.

    Raises DeviceError where LORASMITH_KERNELS=triton asks for what cannot be.
    """
    chosen = chosen_kernels()
    if chosen == "triton" and (find_spec("triton") is None or not (interpreted() or torch.cuda.is_available())):
        raise DeviceError("LORASMITH_KERNELS=triton needs triton, and a CUDA GPU or TRITON_INTERPRET=1; leave it out")
    if chosen == "reference" or triton is None:
        return ()
    if chosen == "triton" and interpreted():
        return ("cpu",)
    return ("cuda",) if torch.cuda.is_available() else ()


def version() -> str:
    """Triton's version, and whether it is the interpreter that runs kernels."""
    if triton is None:
        return "absent"
    return f"{triton.__version__} in its interpreter" if interpreted() else str(triton.__version__)


def absence() -> str:
    """Why Triton serves no device of this process; empty where it serves one."""
    if devices():
        return ""
    if chosen_kernels() == "reference":
        return "LORASMITH_KERNELS=reference"
    if triton is None:
        return "triton is not installed"
    if interpreted():
        return "there is no CUDA GPU, and the interpreter serves the CPU only with LORASMITH_KERNELS=triton"
    return "there is no CUDA GPU"


def serve(name: str, function: Callable) -> None:
    """Let a Triton kernel serve the op name wherever Triton does."""
    for device in devices():
        implement_native(name, device, function)


def current(tensor: Tensor) -> AbstractContextManager[object]:
    """A block in which kernels are launched on the device of tensor."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def unbroken(x: Tensor) -> Tensor:
    """x with the elements of its last axis next to each other; a copy where they are not."""
    return x if x.stride(-1) == 1 else x.contiguous()


def tuned(configs: Sequence[Any], key: Sequence[str]) -> Callable:
    """triton.autotune over configs by the values of key, its choice kept on disk; the interpreter takes the first."""
    if interpreted():
        return triton.autotune(configs=list(configs[:1]), key=list(key))
    return triton.autotune(configs=list(configs), key=list(key), cache_results=True)
