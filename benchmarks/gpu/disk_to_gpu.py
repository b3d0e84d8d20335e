"""Loading a bf16 checkpoint from disk into NF4 on the device: bytes of the checkpoint a second.

Beside it what bounds it, measured on the same files: reading them (from the page cache, and past it where the system
lets us drop it), and copying pinned host memory to the device.
"""

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from bench_loading import into_page_cache
from make_checkpoint import Shape, make_checkpoint
from measuring import Place, forget, peak, place, rotating, told, wait
from random_llama import TINY

import lorasmith

# an eighth of the 8B shape's layers with a small vocabulary: 1.9 GB
SHAPE = Shape(4, 4096, 14336, 32, 8, 8192)


def drop_cache(folder: Path) -> None:
    """Ask the system to forget the files' pages, so that the next read is the disk's."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def timed(action: Any, device: torch.device) -> float:
    wait(device)
    began = time.perf_counter()
    action()
    wait(device)
    return time.perf_counter() - began


def host_to_device(where: Place) -> float:
    """Bytes a second from pinned memory."""
    host = torch.empty(1 << (12 if where.tiny else 28), dtype=torch.uint8, pin_memory=where.on_gpu)
    there = torch.empty_like(host, device=where.device)
    return host.nbytes / rotating([lambda: there.copy_(host, non_blocking=True)] * 2, where)["seconds"]


def load(folder: Path, where: Place) -> None:
    lorasmith.load(folder, scheme="nf4", device=str(where.device))


def main() -> None:
    where = place(__doc__)
    with tempfile.TemporaryDirectory(prefix="lorasmith-loading-") as small, tempfile.TemporaryDirectory() as large:
        # imports, kernels' code and pinned buffers are made by a first load
        make_checkpoint(Path(small), TINY)
        load(Path(small), where)
        folder = Path(small) if where.tiny else Path(large)
        if not where.tiny:
            make_checkpoint(folder, SHAPE, device=where.device)
            forget()
        size = into_page_cache(folder)
        with told("loading, its bounds", bytes=size) as row:
            row["host_to_device"] = host_to_device(where)
            row["read_cached"] = size / timed(lambda: into_page_cache(folder), where.device)
            drop_cache(folder)
            row["read_dropped"] = size / timed(lambda: into_page_cache(folder), where.device)
        for state in ("cached", "dropped"):
            with told("loading", way=f"page cache {state}", bytes=size) as row:
                if state == "dropped":
                    drop_cache(folder)
                with peak(where.device) as memory:
                    row["seconds"] = timed(lambda: load(folder, where), where.device)
                row |= {"bytes_per_second": size / row["seconds"], **memory}
            forget()


if __name__ == "__main__":
    main()
