"""The torch.library namespace of our ops, and the record of which kernel serves which device."""

import os
from collections.abc import Callable
from typing import Literal

import torch

from lorasmith.errors import DeviceError

Device = Literal["cpu", "cuda"]

LIBRARY = torch.library.Library("lorasmith", "DEF")

# op -> devices with a kernel of their own; every other device runs the reference. A kernel's file may be imported
# before the one that declares its op.
NATIVE_KERNELS: dict[str, set[str]] = {}


def define(name: str, signature: str) -> None:
    """Declare lorasmith::name with the arguments and results of signature."""
    LIBRARY.define(name + signature)
    NATIVE_KERNELS.setdefault(name, set())


def implement_reference(name: str, function: Callable) -> None:
    """Serve name on every device with plain PyTorch."""
    LIBRARY.impl(name, function, "CompositeExplicitAutograd")


def implement_native(name: str, device: Device, function: Callable) -> None:
    """Serve name on device with a kernel of its own, in place of the reference."""
    LIBRARY.impl(name, function, device.upper())
    NATIVE_KERNELS.setdefault(name, set()).add(device)


def implement_fake(name: str, function: Callable) -> None:
    """Tell shapes and dtypes of name's results without computing them."""
    torch.library.register_fake(f"lorasmith::{name}", function, lib=LIBRARY)


def chosen_kernels() -> Literal["auto", "reference", "triton"]:
    """What LORASMITH_KERNELS says: each device's fastest, the reference alone, or Triton's where they run.

    Read once, when the ops are registered. Raises DeviceError for any other value.
    """
    wanted = os.environ.get("LORASMITH_KERNELS") or "auto"
    if wanted in ("auto", "reference", "triton"):
        return wanted  # type: ignore[return-value]
    raise DeviceError(f"LORASMITH_KERNELS={wanted} is not known; set it to reference or triton, or leave it out")
