"""Whether others used the cores while something was timed, and what machine it was timed on."""

import os
import platform
import time
from datetime import date
from pathlib import Path

import torch

from lorasmith.ops.precision import bfloat16_instructions

MOST_FOREIGN_SHARE = 0.05


class Watch:
    """The cores between its making and each reading."""

    def __init__(self, own_seconds: float = 0.0) -> None:
        """own_seconds is what the watched processes have spent on the cores so far."""
        self.busy, self.own, self.start = busy_seconds(), own_seconds, time.perf_counter()

    def disturbed(self, own_seconds: float) -> bool:
        """Whether processes other than the watched ones used more than a twentieth of the cores."""
        wall = time.perf_counter() - self.start
        foreign = (busy_seconds() - self.busy) - (own_seconds - self.own)
        return foreign > MOST_FOREIGN_SHARE * wall * (os.cpu_count() or 1)


def busy_seconds() -> float:
    """Seconds that all processes together have spent on all cores, steal by the host included; 0 off Linux."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system, _idle, _wait, interrupt, soft, steal = map(int, stat.read_text().split("\n", 1)[0].split()[1:9])
    return (user + nice + system + interrupt + soft + steal) / os.sysconf("SC_CLK_TCK")


def machine() -> dict[str, object]:
    """Date, processor, instruction sets and torch."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return {
        "date": date.today().isoformat(),
        "processor": names[0] if names else platform.processor(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "bfloat16_instructions": bfloat16_instructions(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
