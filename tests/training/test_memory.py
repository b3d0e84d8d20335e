"""Memory is what the process really holds."""

import numpy as np
import torch

from lorasmith.training.memory import measure

CPU = torch.device("cpu")


def test_memory_follows_what_is_held_and_the_peak_stays():
    before = measure(CPU)
    held = np.ones(64 << 20, dtype=np.uint8)
    during = measure(CPU)
    # the allocator rounds to pages
    assert during.now - before.now > 60 << 20
    del held
    after = measure(CPU)
    assert after.now < during.now - (60 << 20)
    # the kernel counts pages in batches for each thread, so its peak may lag by some hundred KiB
    assert after.peak >= during.now - (1 << 20)
