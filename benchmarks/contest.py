"""Contestants in processes of their own that take turns, so that all see the same machine.

A benchmark keeps a table of name -> Contestant, calls `work` where its command line has --worker, and else `race`.
Inside a process, load(folder) gives a function that takes a request (what JSON can hold) and returns its answer.
A turn during which other processes used the cores is taken again. A contestant whose first turn lasts over a minute (or
the contest's slow_seconds) is timed once, cold; one whose turn exceeds --most-seconds is ended, and its row holds that
bound. Where not all fit into memory together, they run in heats, and the first contestant runs in each; ratios are to
it within the same heat.
A contest that is fresh takes a new process for every turn, so that only one of them holds memory at a time.
"""

import argparse
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from live_tensors import LiveTensors
from quiet import Watch
from resident import Resident
from results import FOLDER, spread

Turn = Callable[[Any], dict[str, Any]]
SLOW_SECONDS = 60.0
ATTEMPTS = 5  # per turn that is wanted
# glibc keeps freed blocks for the next step instead of faulting them in again, as lorasmith.ops.allocation tells it for
# ours; a larger mmap_threshold would not do, since glibc refuses one beyond 32 MiB
KEEP_FREED = {"GLIBC_TUNABLES": "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=2147483647"}


@dataclass(frozen=True)
class Contestant:
    """One way to do the job, and the environment that its process needs."""

    load: Callable[[Path], Turn]
    environment: dict[str, str] = field(default_factory=dict)


class Overrun(Exception):
    """A turn took longer than it may."""


def command_line(doc: str, rounds: int) -> argparse.ArgumentParser:
    """The options that every contest has."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--only", nargs="*", default=[""], help="contestants whose names hold one of these texts")
    parser.add_argument("--most-seconds", type=float, default=240.0, help="of one turn; a longer one is ended")
    parser.add_argument("--accept-noise", action="store_true", help="reject no turn: for development")
    parser.add_argument("--folder", type=Path, help="what the contestants load, where it is made already")
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder that the result is written into")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser


def work(contestant: Contestant, folder: Path) -> None:
    """The life of a contestant: a request a line in, an answer a line out with the seconds that it took."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not come between the answers
    began = time.perf_counter()
    turn = contestant.load(folder)
    print(json.dumps({"load_seconds": time.perf_counter() - began}), file=out, flush=True)
    for line in sys.stdin:
        request, traced = json.loads(line)
        if traced:
            with LiveTensors() as live:
                turn(request)
            answer: dict[str, Any] = {"live": live.peak}
        else:
            wall, own = time.perf_counter(), time.process_time()
            answer = turn(request)
            answer = {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - own} | answer
        print(json.dumps(answer), file=out, flush=True)


class Worker:
    """A contestant's process, seen from outside."""

    def __init__(self, script: str, name: str, contestant: Contestant, folder: Path, sample_seconds: float) -> None:
        self.command = [sys.executable, script, "--worker", name, "--folder", str(folder)]
        self.environment = os.environ | contestant.environment
        self.sample_seconds = sample_seconds
        self.turns: list[dict[str, Any]] = []
        self.first: dict[str, Any] | None = None
        self.rejected = 0
        self.live: int | None = None
        self.renew()

    def renew(self) -> None:
        """Load in a new process; what the one before took in its turns is kept."""
        before = self.resident if self.turns or self.first else None
        pipe = subprocess.PIPE
        # what libraries say; told where the process fails, and open as long as it lives
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            self.command, stdin=pipe, stdout=pipe, stderr=self.log, text=True, env=self.environment
        )
        self.resident = Resident(self.process.pid)
        self.load_seconds = self._answer(None)["load_seconds"]
        self.load_peak = self.resident.restart()
        if before is not None:
            self.resident.include(before)

    def turn(self, request: Any, most_seconds: float | None = None, *, traced: bool = False) -> dict[str, Any]:
        """The answer to request. Raises Overrun, with the process gone, where none comes in time."""
        assert self.process.stdin is not None
        print(json.dumps([request, traced]), file=self.process.stdin, flush=True)
        return self._answer(most_seconds)

    def _answer(self, most_seconds: float | None) -> dict[str, Any]:
        assert self.process.stdout is not None
        began = time.perf_counter()
        while not select.select([self.process.stdout], [], [], self.sample_seconds)[0]:
            self.resident.sample()
            if most_seconds is not None and time.perf_counter() - began > most_seconds:
                self.close()
                raise Overrun
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.log.seek(0)
            raise SystemExit(f"{self.log.read()[-3000:]}\n{self.process.args} ended with {self.process.returncode}")
        self.resident.sample()
        return json.loads(line)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for file in (self.process.stdin, self.process.stdout, self.log):
            assert file is not None
            file.close()


@dataclass(frozen=True)
class Contest:
    """Who runs and how. request(number) gives turn number's request, the same for all; number 0 is the warm-up."""

    script: str
    contestants: Mapping[str, Contestant]
    folder: Path
    request: Callable[[int], Any]
    rounds: int
    most_seconds: float
    guarded: bool
    at_once: int = 99
    fresh: bool = False
    slow_seconds: float = SLOW_SECONDS
    sample_seconds: float = 0.02

    def race(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Rows of the table, in the order of names."""
        first, rest = names[0], names[1:]
        size = max(1, self.at_once - 1)
        heats = [rest[start : start + size] for start in range(0, len(rest), size)] or [[]]
        found = [self._heat([first, *heat]) for heat in heats]
        rows = [found[0][0]] + [row for heat in found for row in heat[1:]]
        rows[0]["seconds_in_heats"] = [heat[0].get("seconds") for heat in found]
        return rows

    def _heat(self, names: Sequence[str]) -> list[dict[str, Any]]:
        workers = {name: self._started(name) for name in names}
        racing = {name: worker for name, worker in workers.items() if worker.first and not self._slow(worker)}
        for attempt in range(1, ATTEMPTS * self.rounds + 1):
            waiting = {name: worker for name, worker in racing.items() if len(worker.turns) < self.rounds}
            if not waiting:
                break
            for name, worker in waiting.items():
                self._take(name, worker, attempt)
        for worker in racing.values() if not self.fresh else ():
            worker.live = worker.turn(self.request(0), traced=True)["live"]
            worker.close()
        rows = [{"name": name, **self._summary(worker)} for name, worker in workers.items()]
        for row in rows:
            row["ratio"] = row["seconds"] / rows[0]["seconds"]
        return rows

    def _started(self, name: str) -> Worker:
        """Loaded and warmed up; closed where it is too slow for more than that, and in a fresh contest."""
        worker = Worker(self.script, name, self.contestants[name], self.folder, self.sample_seconds)
        try:
            watch = Watch()
            worker.first = worker.turn(self.request(0), self.most_seconds)
            worker.first["disturbed"] = watch.disturbed(worker.first["cpu"])
            if self.fresh or self._slow(worker):
                worker.close()
            took = f"{worker.first['seconds']:.1f} s"
        except Overrun:
            took = f"over {self.most_seconds:.0f} s"
        print(f"{name}: loaded in {worker.load_seconds:.1f} s, first turn {took}", file=sys.stderr, flush=True)
        return worker

    def _slow(self, worker: Worker) -> bool:
        """Whether its first turn shows that more of them take too long."""
        return worker.first is not None and worker.first["seconds"] > self.slow_seconds

    def _take(self, name: str, worker: Worker, number: int) -> None:
        if self.fresh:
            worker.renew()
        watch = Watch()
        answer = worker.turn(self.request(number))
        if self.guarded and watch.disturbed(answer["cpu"]):
            worker.rejected += 1
            print(f"{name}: a turn of {answer['seconds']:.2f} s was disturbed", file=sys.stderr, flush=True)
        else:
            worker.turns.append(answer)
        if self.fresh:
            worker.close()

    def _summary(self, worker: Worker) -> dict[str, Any]:
        """seconds is a median, of a cold turn where that is the only one, or a bound where over is true."""
        if worker.first is None:
            times, note = [self.most_seconds], "over"
        elif worker.turns:
            times, note = [turn["seconds"] for turn in worker.turns], ""
        else:
            times, note = [worker.first["seconds"]], "cold, disturbed" if worker.first["disturbed"] else "cold"
        memory = {"load_peak": worker.load_peak, "peak": worker.resident.peak, "anonymous": worker.resident.anonymous}
        return {
            **spread(times),
            "note": note,
            "samples": len(worker.turns),
            "rejected": worker.rejected,
            "load_seconds": worker.load_seconds,
            "first": worker.first,
            **memory,
            "file": worker.resident.file,
            "live": worker.live,
        }
