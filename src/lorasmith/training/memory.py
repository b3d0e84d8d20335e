"""How much memory this process holds, now and at its peak."""

import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Memory:
    """Bytes now and at the peak: of the accelerator where there is one, else resident memory of the process."""

    now: int
    peak: int


def measure(device: torch.device) -> Memory:
    """Memory on device: what torch has allocated on CUDA, VmRSS and VmHWM on Linux, the peak alone elsewhere."""
    if device.type == "cuda":
        return Memory(torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device))
    if _STATUS.exists():
        fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
        now = _kibibytes(fields["VmRSS"])
        # the kernel counts both in batches, so that its peak may lag a little behind
        return Memory(now, max(now, _kibibytes(fields["VmHWM"])))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts bytes, the other Unixes KiB
    peak = peak if sys.platform == "darwin" else peak * 1024
    return Memory(peak, peak)


def _kibibytes(field: str) -> int:
    return int(field.split()[0]) * 1024
