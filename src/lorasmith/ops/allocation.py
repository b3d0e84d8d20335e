"""How the C library gives memory to PyTorch's CPU tensors, which have no caching allocator of their own.

Kept: glibc hands every block beyond a threshold straight back to the kernel when it is freed, and the next step faults
its pages in again, zeroed: about a third of a millisecond a MiB, more than most operations on them take.

Returned: what glibc keeps, it fragments. Before 2.38 it serves an aligned request only from a free block that is larger
by the alignment, so an equal block between two living ones is seldom used again (sourceware bug 14581). Where small
living tensors and large dead ones take turns, as layer after layer does under gradient checkpointing, the holes outgrow
the tensors.
"""

import ctypes
import os
import platform

# malloc.h of glibc
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_NEVER = 2**31 - 1
_MANY = 1 << 16
_RETURNED_BYTES = 1 << 20


def keep_freed_blocks() -> bool:
    """Let this process keep freed blocks for its next allocations, from now on.

    False where the C library is not glibc, or the environment tells it what to do (MALLOC_..., GLIBC_TUNABLES).

    The peak is what is alive at once and the gaps between blocks; after it the process does not shrink.
    """
    return _tell({_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: _NEVER})


def return_freed_blocks() -> bool:
    """Let this process return freed blocks of a MiB and more at once, from now on; False as above.

    The peak is then hardly more than what is alive at once, at the cost of page faults in every step.
    """
    return _tell({_M_MMAP_MAX: _MANY, _M_MMAP_THRESHOLD: _RETURNED_BYTES, _M_TRIM_THRESHOLD: _NEVER})


def _tell(choices: dict[int, int]) -> bool:
    told = any(name.startswith("MALLOC_") for name in os.environ) or "glibc.malloc" in os.environ.get(
        "GLIBC_TUNABLES", ""
    )
    if told or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(parameter, value) for parameter, value in choices.items())
