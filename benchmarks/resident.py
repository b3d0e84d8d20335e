"""What a process holds in memory, read from /proc: its peak as the kernel kept it, anonymous and file pages apart."""

import contextlib
from pathlib import Path

FIELDS = ("VmHWM", "VmRSS", "RssAnon", "RssFile")


def status(process: int | str = "self") -> dict[str, int]:
    """VmHWM, VmRSS, RssAnon and RssFile in bytes; 0 for what a process that has ended no longer has."""
    lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
    pairs = dict(line.split(":", 1) for line in lines if line.startswith(FIELDS))
    return {name: int(pairs[name].split()[0]) * 1024 if name in pairs else 0 for name in FIELDS}


class Resident:
    """The peaks of one process: resident memory exactly, its two parts as far as samples saw them."""

    def __init__(self, process: int | str = "self") -> None:
        self.process = process
        self.peak = self.anonymous = self.file = 0

    def sample(self) -> None:
        """Look once."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            now = status(self.process)
            self.peak = max(self.peak, now["VmHWM"])
            self.anonymous = max(self.anonymous, now["RssAnon"])
            self.file = max(self.file, now["RssFile"])

    def include(self, other: "Resident") -> None:
        """Take the larger of both peaks."""
        self.peak = max(self.peak, other.peak)
        self.anonymous = max(self.anonymous, other.anonymous)
        self.file = max(self.file, other.file)

    def restart(self) -> int:
        """Forget the peaks so far, the kernel's as well, and return the resident one."""
        self.sample()
        before = self.peak
        Path(f"/proc/{self.process}/clear_refs").write_text("5")
        self.peak = self.anonymous = self.file = 0
        return before
