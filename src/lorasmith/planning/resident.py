"""The memory that this process holds, as the operating system counts it."""

import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def resident_bytes() -> int:
    """Resident memory of this process in bytes; its peak where the system tells no current figure (not Linux)."""
    return _status_bytes("VmRSS") or _highest()


def peak_resident_bytes() -> int:
    """Highest resident memory that this process ever had, in bytes."""
    return _status_bytes("VmHWM") or _highest()


def _status_bytes(field: str) -> int | None:
    if not _STATUS.exists():
        return None
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return None


def _highest() -> int:
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS reports bytes, the others KiB
    return highest if sys.platform == "darwin" else highest * 1024
