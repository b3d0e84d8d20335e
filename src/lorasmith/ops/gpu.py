"""Triton kernels: which devices they serve here, and how they are launched.

Triton's interpreter (TRITON_INTERPRET=1, read when triton is imported) runs the same kernels on CPU tensors. With
LORASMITH_KERNELS=triton they then serve the CPU in place of its own, which is how they are tested without a GPU.
"""

import os
import shutil
import sys
import sysconfig
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorasmith.errors import DeviceError
from lorasmith.ops import choice
from lorasmith.ops.library import Device, chosen_kernels, implement_native

try:
    import triton
except ImportError:
    triton = None

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
"""The types of values that every Triton kernel reads and writes."""

EXACT: dict[str, Any] = {"enable_fp_fusion": False}
"""Launch options for kernels whose results are bit-equal to the reference: no fused multiply-add."""

OLDEST = (7, 5)
"""The compute capability that the kernels need at least."""


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
    # what was asked for by name is tried
    served = torch.cuda.is_available() and (chosen == "triton" or not obstacle())
    return ("cuda",) if served else ()


def launches() -> bool:
    """Whether Triton can launch kernels, PyTorch's own among them, on the GPUs of this process."""
    wanted = triton is not None and chosen_kernels() != "reference" and not interpreted()
    return wanted and torch.cuda.is_available() and not missing_tools()


def obstacle() -> str:
    """What keeps our kernels from this machine's GPUs, of what can be seen without waking them; empty for nothing."""
    if torch.version.hip:
        return "the kernels are made for NVIDIA's GPUs and untried on AMD's; LORASMITH_KERNELS=triton tries them"
    return missing_tools()


@cache
def missing_tools() -> str:
    """What Triton lacks to compile a launcher in C for every kernel, against Python's headers; empty for nothing."""
    if sys.platform != "linux" or interpreted():
        return ""
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "Triton needs a C compiler; install gcc, or name yours in CC"
    # Debian's own scheme names a folder of packages that pip has installed
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")
    header = Path(sysconfig.get_path("include", scheme), "Python.h")
    if header.is_file() or os.environ.get("CPATH") or os.environ.get("C_INCLUDE_PATH"):
        return ""
    return f"Triton needs Python's headers, and there is no {header}; install python3-dev"


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
    return obstacle() if torch.cuda.is_available() else "there is no CUDA GPU"


def serve(name: str, function: Callable) -> None:
    """Let a Triton kernel serve the op name wherever Triton does."""
    for device in devices():
        implement_native(name, device, function)


def current(tensor: Tensor) -> AbstractContextManager[object]:
    """A block in which kernels are launched on the device of tensor. Raises DeviceError for a GPU that is too old."""
    if not tensor.is_cuda:
        return nullcontext()
    _check_age(tensor.device)
    return torch.cuda.device(tensor.device)


@cache
def _check_age(device: torch.device) -> None:
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST and not torch.version.hip:
        name, has, needs = torch.cuda.get_device_name(device), *(".".join(map(str, c)) for c in (capability, OLDEST))
        raise DeviceError(
            f"{name} has compute capability {has}, and Triton's kernels need {needs}; set LORASMITH_KERNELS=reference"
        )


@cache
def tensor_cores(device: torch.device) -> bool:
    """Whether products in Triton's kernels run on tensor cores: its compiler knows those from capability 8.0 on."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0)


def unbroken(x: Tensor) -> Tensor:
    """x with the elements of its last axis next to each other; a copy where they are not."""
    return x if x.stride(-1) == 1 else x.contiguous()


def tuned(configs: Sequence[Any], key: Sequence[str]) -> Callable:
    """triton.autotune over configs by the values of key, its choice kept on disk by triton.

    Kernels must only write, since the one that is timed runs often. The interpreter takes the first of configs, and so
    does LORASMITH_CHOICES=fixed, as it stands when the kernels are imported, and a graph that is being captured.
    """
    if interpreted() or choice.asked() == choice.FIXED:
        return triton.autotune(configs=list(configs[:1]), key=list(key))
    pruned = {"early_config_prune": _to_be_timed}
    return triton.autotune(list(configs), list(key), prune_configs_by=pruned, do_bench=_timed, cache_results=True)


def _to_be_timed(configs: list[Any], arguments: Any, **options: Any) -> list[Any]:
    return configs[:1] if _captured() else configs


def _timed(call: Callable[[], Any], quantiles: Sequence[float]) -> list[float]:
    """In place of triton's benchmark, which takes 256 MB for it: a training step may have none to spare."""
    return [0.0 if _captured() else choice.seconds(call)] * len(quantiles)


def _captured() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
