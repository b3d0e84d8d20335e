"""Functions in one process that take turns in batches, so that all see the same machine.

A batch is thrown away and taken again when other processes used more than 5 % of the cores meanwhile (from /proc/stat;
without that file, or unguarded, nothing is rejected). A function whose first call lasts over two seconds is timed by
that call alone, cold.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from quiet import Watch

MOST_ATTEMPTS = 6  # per batch that is wanted
BATCH_SECONDS = 0.15
LEAST_CALLS = 3  # of a batch, where they do not take over a second together
SLOW_SECONDS = 2.0


@dataclass
class Samples:
    """The seconds of a call, a median for each accepted batch, and how many batches were rejected."""

    times: list[float] = field(default_factory=list)
    rejected: int = 0
    cold: bool = False

    @property
    def median(self) -> float:
        return statistics.median(self.times)


def can_reject() -> bool:
    """Whether this system tells what other processes use."""
    return Path("/proc/stat").exists()


def alternate(functions: Mapping[str, Callable[[], object]], batches: int, guarded: bool) -> dict[str, Samples]:
    """Samples of each function, a batch of one after a batch of another. Raises SystemExit where none was quiet."""
    samples = {name: _first_call(function) for name, function in functions.items()}
    for _ in range(batches * MOST_ATTEMPTS):
        waiting = [name for name, kept in samples.items() if not kept.cold and len(kept.times) < batches]
        if not waiting:
            break
        for name in waiting:
            _take(functions[name], samples[name], guarded)
    if not all(kept.times for kept in samples.values()):
        raise SystemExit("other processes use the cores all the time; run this on a quiet machine")
    return samples


def _first_call(function: Callable[[], object]) -> Samples:
    start = time.perf_counter()
    function()
    seconds = time.perf_counter() - start
    return Samples([seconds], cold=True) if seconds > SLOW_SECONDS else Samples()


def _take(function: Callable[[], object], kept: Samples, guarded: bool) -> None:
    watch = Watch(time.process_time())
    seconds = _batch(function)
    if guarded and watch.disturbed(time.process_time()):
        kept.rejected += 1
    else:
        kept.times.append(seconds)


def _batch(function: Callable[[], object]) -> float:
    """Median seconds of a call over a batch of calls."""
    times: list[float] = []
    while (spent := sum(times)) < BATCH_SECONDS or (len(times) < LEAST_CALLS and spent < 1):
        before = time.perf_counter()
        function()
        times.append(time.perf_counter() - before)
    return statistics.median(times)
