"""What this machine runs: versions, devices, kernels. What a bug report needs."""

import importlib.metadata
import os
import platform
from collections.abc import Iterator

import torch

from lorasmith.ops import kernel_status, triton_status
from lorasmith.ops.precision import bfloat16_instructions

PACKAGES = ("lorasmith", "torch", "transformers", "tokenizers", "safetensors", "numpy", "pydantic")
OPTIONAL = ("datasets", "pyarrow", "matplotlib", "tensorboard", "wandb", "peft", "bitsandbytes", "accelerate")
VARIABLES = (
    "LORASMITH_KERNELS",
    "LORASMITH_CPU_LEVEL",
    "LORASMITH_DEBUG",
    "TRITON_INTERPRET",
    "OMP_NUM_THREADS",
    "HF_HOME",
    "HF_HUB_OFFLINE",
)


def environment_lines() -> Iterator[str]:
    """Lines for people: Python and packages, devices, kernels, the environment variables that change them."""
    yield f"python {platform.python_version()} on {platform.platform()}"
    for name in PACKAGES:
        yield f"{name} {_version(name)}"
    yield "optional: " + ", ".join(f"{name} {_version(name)}" for name in OPTIONAL)
    yield from _devices()
    yield f"triton {triton_status()}"
    for status in kernel_status():
        yield f"kernel {status.op} on {status.device}: {status.active} ({status.why})"
    for name in VARIABLES:
        if name in os.environ:
            yield f"{name}={os.environ[name]}"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _devices() -> Iterator[str]:
    products = "bf16 products" if bfloat16_instructions() else "no bf16 instructions, so such products are made in f32"
    yield f"device cpu: {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads, {products}"
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        yield f"device cuda:{index}: {device.name}, {device.total_memory / 2**30:.1f} GiB"
    if not torch.cuda.is_available():
        yield "device cuda: absent"
    yield f"device mps: {'available' if torch.backends.mps.is_available() else 'absent'}"
