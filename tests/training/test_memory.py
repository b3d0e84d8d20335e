"""Memory is what the process really holds."""

import mmap

import torch

from lorasmith.training.memory import measure

CPU = torch.device("cpu")


def test_memory_follows_what_is_held_and_the_peak_stays():
    before = measure(CPU)
    # straight from the kernel: what the allocator has kept of freed blocks would not grow the process
    held = mmap.mmap(-1, 64 << 20)
    held.write(b"1" * (64 << 20))
    during = measure(CPU)
    assert during.now - before.now > 60 << 20
    held.close()
    after = measure(CPU)
    assert after.now < during.now - (60 << 20)
    # the kernel counts pages in batches for each thread, so its peak may lag by some hundred KiB
    assert after.peak >= during.now - (1 << 20)


def test_on_a_gpu_what_is_reserved_is_told_beside_what_is_allocated(monkeypatch):
    told = {"memory_allocated": 3, "max_memory_allocated": 5, "max_memory_reserved": 8}
    for name, size in told.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, size=size: size)
    found = measure(torch.device("cuda"))
    assert (found.now, found.peak, found.reserved) == (3, 5, 8)
    assert found.peaks() == {"memory_peak_bytes": 5, "memory_reserved_peak_bytes": 8}
    assert measure(CPU).peaks().keys() == {"memory_peak_bytes"}
