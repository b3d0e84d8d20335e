"""How PyTorch's allocator takes memory from a GPU."""

import os

import torch

# the second is the name that was used before torch 2.9, and still counts
_TOLD = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


def grow_segments() -> bool:
    """Let the allocator grow its segments in place, from now on; call it before the first tensor on a GPU.

    Segments of fixed sizes leave gaps where rows of varied lengths follow each other, which no later request fits;
    mapped memory that grows leaves none. False, and nothing is changed, where the environment tells the allocator what
    to do, where this process has done so already (which torch 2.13 can say, 2.11 cannot), or where there is no CUDA
    GPU.
    """
    settings = getattr(torch._C, "_accelerator_getAllocatorSettings", str)
    if any(os.environ.get(name) for name in _TOLD) or settings() or not torch.cuda.is_available():
        return False
    torch._C._accelerator_setAllocatorSettings("expandable_segments:True")
    return True
