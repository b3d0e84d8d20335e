"""Which device the work runs on."""

from typing import Literal

import torch

from lorasmith.errors import DeviceError, nearest

DeviceName = Literal["auto", "cpu", "cuda", "mps"]
NAMES = ("auto", "cpu", "cuda", "mps")


def resolve(name: str = "auto") -> torch.device:
    """The torch device for a name: auto takes CUDA, then MPS, then the CPU; "cuda:1" picks a card.

    Raises DeviceError for an unknown name, or a device that this machine does not have.
    """
    kind = name.partition(":")[0]
    if kind not in NAMES:
        raise DeviceError(f"device {name!r} is unknown; choose one of: {', '.join(NAMES)}.{nearest(name, NAMES)}")
    present = _present()
    if name == "auto":
        return torch.device(present[0])
    if kind not in present:
        raise DeviceError(f"device {name!r} is not on this machine (it has {', '.join(present)}); use --device auto")
    return torch.device(name)


def _present() -> list[str]:
    # fastest first
    devices = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return [device for device, there in devices.items() if there]
