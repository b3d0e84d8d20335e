"""How much memory this process holds, now and at its peak."""

from dataclasses import dataclass

import torch

from lorasmith.planning import peak_resident_bytes, resident_bytes


@dataclass(frozen=True)
class Memory:
    """Bytes now and at the peak: of the accelerator where there is one, else resident memory of the process.

    reserved is the peak of what torch has taken from a CUDA device, gaps between tensors included; None elsewhere.
    """

    now: int
    peak: int
    reserved: int | None = None

    def peaks(self) -> dict[str, int]:
        """The peaks by the names that a log gives them."""
        known = {"memory_peak_bytes": self.peak, "memory_reserved_peak_bytes": self.reserved}
        return {name: size for name, size in known.items() if size is not None}


def measure(device: torch.device) -> Memory:
    """Memory on device: what torch has allocated and reserved on CUDA, else resident memory of the process."""
    if device.type == "cuda":
        allocated = torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
        return Memory(*allocated, torch.cuda.max_memory_reserved(device))
    now = resident_bytes()
    # the kernel counts both in batches, so that its peak may lag a little behind
    return Memory(now, max(now, peak_resident_bytes()))
