"""All that is to be shown on a GPU, part by part, each in a process of its own with a limit on its time.

    python benchmarks/gpu/run.py [--device cuda] [--tiny] [--only PART ...] [--most-seconds 525] [--out FILE]

What a part tells is in the file as soon as it is told, so that a run that is killed leaves what it measured. Parts go
in order of worth; those of which nothing is timed go together, and the next ones import their libraries meanwhile,
without touching the device. One that finds too little time left is not begun. With --only the file's other parts stay,
which are then of an earlier run on the same machine. Exit code 1 where a part did not end well.
"""

import argparse
import json
import os
import queue
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
RESULT = HERE.parent / "results" / "gpu.json"
# of a part's limit: to end by itself, before it is ended
MARGIN = 5.0


@dataclass(frozen=True)
class Part:
    """A script of this folder; most_seconds is its limit, least_seconds what it needs to be worth beginning."""

    script: str
    most_seconds: float
    least_seconds: float


# what stands in one stage goes together
STAGES = (
    (Part("facts", 45, 5),),
    (Part("gpu_tests", 100, 20), Part("against_reference", 100, 15), Part("plan_peaks", 100, 20)),
    (Part("kernel_rates", 80, 20),),
    (Part("qlora_step", 120, 40),),
    (Part("peaks", 110, 30),),
    (Part("longest", 100, 30),),
    (Part("decoding", 60, 25),),
    (Part("disk_to_gpu", 45, 15),),
)
NAMES = [part.script for stage in STAGES for part in stage]


class Record:
    """The file of results, whole after every row."""

    def __init__(self, path: Path, about: dict[str, Any], kept: dict[str, Any]) -> None:
        self.path, self.content = path, {**about, "parts": kept}
        self._one_at_a_time = threading.Lock()

    def begin(self, part: str) -> dict[str, Any]:
        entry: dict[str, Any] = {"ended": "not yet", "rows": []}
        with self._one_at_a_time:
            self.content["parts"][part] = entry
        self.write()
        return entry

    def write(self) -> None:
        # whole or not at all, without lorasmith.atomic: to import that takes seconds of a run that has few
        with self._one_at_a_time:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial = self.path.with_suffix(".partial")
            partial.write_text(json.dumps(self.content, indent=1) + "\n")
            partial.replace(self.path)


def environment() -> dict[str, str]:
    """This process's, with lorasmith's source and what the parts share on Python's path."""
    paths = [REPOSITORY / "src", HERE.parent, *filter(None, [os.environ.get("PYTHONPATH")])]
    # as lorasmith tells the allocator itself where it trains; the peers gain by it too
    defaults = {"PYTORCH_ALLOC_CONF": "expandable_segments:True", "PYTHONUNBUFFERED": "1"}
    # measuring.STANDBY
    told = {"PYTHONPATH": os.pathsep.join(map(str, paths)), "LORASMITH_GPU_STANDBY": "1"}
    return {**defaults, **os.environ, **told}


class Running:
    """A part's process, started ahead of its turn: it imports what it needs and waits to be told to go."""

    def __init__(self, part: Part, options: list[str]) -> None:
        self.part = part
        # open as long as the process writes into it
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115
        pipe = subprocess.PIPE
        command = [sys.executable, str(HERE / f"{part.script}.py"), *options]
        # a group of its own: a part's processes end with it
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=self._said, text=True, env=environment(), start_new_session=True
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def carry_out(self, seconds: float, record: Record) -> bool:
        """Let it work for at most seconds; its rows go into record as they come. True where it ended well."""
        entry, began = record.begin(self.part.script), time.monotonic()
        with suppress(BrokenPipeError):
            print(max(1.0, seconds - MARGIN), file=self.process.stdin, flush=True)
        ended = self._collect(began + seconds, entry, record)
        entry |= {"ended": ended, "wall_seconds": round(time.monotonic() - began, 1)}
        if ended != "well" or any("error" in row for row in entry["rows"]):
            self._said.seek(0)
            entry["said"] = self._said.read()[-3000:]
        record.write()
        told = f"{entry['wall_seconds']} s, {len(entry['rows'])} rows"
        print(f"{self.part.script}: ended {ended} after {told}", file=sys.stderr, flush=True)
        return ended == "well"

    def _collect(self, deadline: float, entry: dict[str, Any], record: Record) -> str:
        """Rows until the process ends or deadline passes; returns how it ended."""
        try:
            while (line := self._lines.get(timeout=max(0.0, deadline - time.monotonic()))) is not None:
                # a process that died in the middle of a line
                with suppress(json.JSONDecodeError):
                    entry["rows"].append(json.loads(line))
                    record.write()
            code = self.process.wait(timeout=max(1.0, deadline - time.monotonic()))
        except (queue.Empty, subprocess.TimeoutExpired):
            self.kill()
            return "out of time"
        return "well" if code == 0 else f"with exit code {code}"

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            # libraries print, too
            if line.startswith('{"name"'):
                self._lines.put(line)
        self._lines.put(None)

    def kill(self) -> None:
        """End it and what it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def end(self) -> None:
        """End all of it, if it still runs, and close its files."""
        self.kill()
        # one that hangs in the driver must not hang the run
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=10)
        self._reader.join(timeout=10)
        for file in (self.process.stdin, self.process.stdout, self._said):
            assert file is not None
            # what was to be told to a process that is gone
            with suppress(BrokenPipeError):
                file.close()


@contextmanager
def _ended_on_error(parts: list[Running]) -> Iterator[None]:
    """Whoever interrupts the run does not wait for parts."""
    try:
        yield
    except BaseException:
        for running in parts:
            running.kill()
        raise


@dataclass(frozen=True)
class Run:
    """All stages, one after the other, until the monotonic time ends."""

    stages: list[list[Part]]
    options: list[str]
    unlimited: bool
    ends: float
    record: Record

    def carry_out(self) -> bool:
        """True where every part ended well."""
        well, waiting = True, self._started(self.stages[0])
        try:
            for following in [*self.stages[1:], []]:
                now, waiting = waiting, []
                with ThreadPoolExecutor(len(now)) as pool, _ended_on_error(now):
                    going = [pool.submit(self._turn, running) for running in now]
                    waiting = self._started(following)
                    ends = [each.result() for each in going]
                    well = well and all(ends)
        finally:
            for running in waiting:
                running.end()
        return well

    def _started(self, stage: list[Part]) -> list[Running]:
        return [Running(part, self.options) for part in stage]

    def _turn(self, running: Running) -> bool:
        left = self.ends - time.monotonic()
        if left < running.part.least_seconds:
            self.record.begin(running.part.script)["ended"] = "not begun: no time left"
            self.record.write()
            running.end()
            return False
        try:
            # a busy machine may take long to import what toys need
            return running.carry_out(left if self.unlimited else min(left, running.part.most_seconds), self.record)
        finally:
            running.end()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="toy shapes: whether it works; needs --out")
    parser.add_argument("--only", nargs="*", choices=NAMES, help="parts to run")
    parser.add_argument("--most-seconds", type=float, default=525.0, help="of all parts together")
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    if (given.tiny or given.device == "cpu") and given.out.resolve().parent == RESULT.parent:
        parser.error(f"--tiny and --device cpu measure nothing: give --out outside {RESULT.parent}")
    return given


def main() -> int:
    given, began = arguments(), time.monotonic()
    about = {"command": shlex.join(["python", *sys.argv]), "tiny": given.tiny, "device": given.device}
    kept = json.loads(given.out.read_text())["parts"] if given.only and given.out.exists() else {}
    wanted = [[part for part in stage if not given.only or part.script in given.only] for stage in STAGES]
    options = ["--device", given.device, *(["--tiny"] if given.tiny else [])]
    ends, record = began + given.most_seconds, Record(given.out, about, kept)
    # who ends the run ends its parts
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    return 0 if Run([stage for stage in wanted if stage], options, given.tiny, ends, record).carry_out() else 1


if __name__ == "__main__":
    sys.exit(main())
