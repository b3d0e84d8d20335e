"""Which kernels are active, and why."""

from dataclasses import dataclass
from typing import Literal

from lorasmith.ops.library import NATIVE_KERNELS


@dataclass(frozen=True)
class KernelStatus:
    """One line of `lorasmith env`: what serves an op on a device."""

    op: str
    device: str
    active: Literal["native", "reference"]
    why: str


def kernel_status() -> list[KernelStatus]:
    """What serves each op on the CPU."""
    return [KernelStatus(op, "cpu", "native" if "cpu" in d else "reference", "") for op, d in NATIVE_KERNELS.items()]
