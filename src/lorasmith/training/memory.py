"""How much memory this process holds, now and at its peak."""

from dataclasses import dataclass

import torch

from lorasmith.planning import peak_resident_bytes, resident_bytes


@dataclass(frozen=True)
class Memory:
    """Bytes now and at the peak: of the accelerator where there is one, else resident memory of the process."""

    now: int
    peak: int


def measure(device: torch.device) -> Memory:
    """Memory on device: what torch has allocated on CUDA, else resident memory of the process."""
    if device.type == "cuda":
        return Memory(torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device))
    now = resident_bytes()
    # the kernel counts both in batches, so that its peak may lag a little behind
    return Memory(now, max(now, peak_resident_bytes()))
