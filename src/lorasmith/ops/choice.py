"""Which of several ways to compute the same is fastest on this GPU: timed once for a kind of call, then remembered.

What was measured is kept on disk, for each device and version of PyTorch, so that a second run computes in the same
ways and repeats the first bit for bit. LORASMITH_CHOICES=fixed measures nothing and follows the rule that each caller
states; the name of a way takes that one wherever it is among those to choose from, and elsewhere the rule's.
"""

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from lorasmith.atomic import write_text
from lorasmith.errors import DeviceError, WriteError

Way = Callable[[], Tensor]
Stopwatch = Callable[[Way], float]

MEASURED, FIXED = "measured", "fixed"
NAMES = ("fused", "stacked", "buffer")
"""The ways that there are; most calls have some of them to choose from."""

ROUNDS = 5
HEAD_START = 2_000_000
"""Cycles of a GPU's clock, about a millisecond."""


def take(ways: Mapping[str, Way], rule: str, kind: str | None, device: torch.device) -> Tensor:
    """The result of one of ways, by its name: the fastest for calls of this kind, or the rule's.

    ways give the same but for rounding. The rule holds for kind None, for a way that is alone, for other devices than
    CUDA's, and, where nothing is known yet, while a graph is captured. Raises DeviceError where LORASMITH_CHOICES names
    no way.
    """
    wanted = asked()
    if wanted not in (MEASURED, FIXED, *NAMES, *ways):
        raise DeviceError(f"LORASMITH_CHOICES={wanted} is not known; set it to one of {(MEASURED, FIXED, *NAMES)}")
    if wanted in ways:
        return ways[wanted]()
    if wanted != MEASURED or kind is None or device.type != "cuda" or len(ways) == 1:
        return ways[rule]()
    choices = choices_of(device)
    if torch.cuda.is_current_stream_capturing():
        return ways[choices.known(kind, ways) or rule]()
    return ways[choices.fastest(kind, ways, seconds)]()


def asked() -> str:
    """What LORASMITH_CHOICES says."""
    return os.environ.get("LORASMITH_CHOICES") or MEASURED


def size_class(rows: int) -> int:
    """rows up to the next power of two: calls whose rows round to the same are one kind."""
    return 1 << (rows - 1).bit_length()


@cache
def choices_of(device: torch.device) -> "Choices":
    """What is known of a CUDA device."""
    name = f"{torch.cuda.get_device_name(device)} torch {torch.__version__}"
    return Choices(folder() / (re.sub(r"[^\w.+]+", "-", name) + ".json"))


def folder() -> Path:
    """Where choices are kept: lorasmith/choices in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lorasmith" / "choices"


class Choices:
    """The fastest way for each kind of call, in a file of JSON; a file that is broken counts as none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fastest = _read(path)
        # what was measured while memory was short: for this process alone
        self._passing: dict[str, str] = {}

    def known(self, kind: str, ways: Mapping[str, Way]) -> str | None:
        """The way for this kind, if it was measured and is still one of ways."""
        name = self._fastest.get(kind) or self._passing.get(kind)
        return name if name in ways else None

    def fastest(self, kind: str, ways: Mapping[str, Way], stopwatch: Stopwatch) -> str:
        """The way for this kind, measured now if it is not known."""
        known = self.known(kind, ways)
        if known is not None:
            return known
        times = {name: stopwatch(way) for name, way in ways.items()}
        fastest = min(times, key=lambda name: times[name])
        if math.inf in times.values():
            self._passing[kind] = fastest
            return fastest
        # other processes measure too
        self._fastest = {**self._fastest, **_read(self._path), kind: fastest}
        # a home without room: this process keeps it all the same
        with suppress(WriteError):
            write_text(self._path, json.dumps(self._fastest, indent=1, sort_keys=True) + "\n")
        return fastest


def seconds(way: Way) -> float:
    """The shortest of some runs on the current CUDA stream, after one that compiles and warms up.

    Infinite where memory does not suffice for it: another way may still do.
    """
    try:
        way()
        return min(_once(way) for _ in range(ROUNDS))
    except torch.OutOfMemoryError:
        return math.inf


def _once(way: Way) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    # the GPU waits until all launches stand in its queue, as they do in a step: the processor's own time is not timed
    torch.cuda._sleep(HEAD_START)
    begin.record()
    way()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def _read(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return {str(kind): str(name) for kind, name in found.items()} if isinstance(found, dict) else {}
