"""How the C library gives memory to PyTorch's CPU tensors, which have no caching allocator of their own.

glibc hands every block beyond a threshold straight back to the kernel when it is freed, and the next step faults its
pages in again, zeroed: about a third of a millisecond a MiB, more than most operations on them take.
"""

import ctypes
import platform

# malloc.h of glibc
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = 2**31 - 1


def keep_freed_blocks() -> bool:
    """Let this process keep freed blocks for its next allocations, from now on; False where the C library is not glibc.

    The peak stays what is alive at once, but for gaps between blocks; after it the process does not shrink.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))
