"""All that is to be shown on a GPU, part by part, each in a process of its own with a limit on its time.

    python benchmarks/gpu/run.py [--device cuda] [--tiny] [--only PART ...] [--most-seconds 525] [--out FILE]

What a part tells is in the file as soon as it is told, so that a run that is killed leaves what it measured. Parts go
in order of worth; one that finds too little time left is not begun. With --only the file's other parts stay, which are
then of an earlier run on the same machine. Exit code 1 where a part did not end well.
"""

import argparse
import json
import os
import queue
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
RESULT = HERE.parent / "results" / "gpu.json"


@dataclass(frozen=True)
class Part:
    """A script of this folder; most_seconds is its limit, least_seconds what it needs to be worth beginning."""

    script: str
    most_seconds: float
    least_seconds: float


PARTS = (
    Part("facts", 45, 5),
    Part("gpu_tests", 100, 20),
    Part("against_reference", 60, 15),
    Part("kernel_rates", 80, 20),
    Part("qlora_step", 120, 40),
    Part("decoding", 60, 25),
    Part("peaks", 120, 40),
    Part("longest", 110, 40),
    Part("plan_peaks", 60, 20),
    Part("disk_to_gpu", 55, 20),
)


class Record:
    """The file of results, whole after every row."""

    def __init__(self, path: Path, about: dict[str, Any], kept: dict[str, Any]) -> None:
        self.path, self.content = path, {**about, "parts": kept}

    def begin(self, part: str) -> dict[str, Any]:
        entry: dict[str, Any] = {"ended": "not yet", "rows": []}
        self.content["parts"][part] = entry
        self.write()
        return entry

    def write(self) -> None:
        # whole or not at all, without lorasmith.atomic: to import that takes seconds of a run that has few
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.content, indent=1) + "\n")
        partial.replace(self.path)


def environment() -> dict[str, str]:
    """This process's, with lorasmith's source and what the parts share on Python's path."""
    paths = [REPOSITORY / "src", HERE.parent, *filter(None, [os.environ.get("PYTHONPATH")])]
    # as lorasmith tells the allocator itself where it trains; the peers gain by it too
    defaults = {"PYTORCH_ALLOC_CONF": "expandable_segments:True", "PYTHONUNBUFFERED": "1"}
    return {**defaults, **os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}


def carry_out(part: Part, options: list[str], seconds: float, record: Record) -> bool:
    """Run part for at most seconds; its rows go into record as they come. True where it ended well."""
    entry, began = record.begin(part.script), time.monotonic()
    command = [sys.executable, str(HERE / f"{part.script}.py"), *options]
    with tempfile.TemporaryFile("w+") as said:
        # a group of its own: a part's processes end with it
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=said, text=True, env=environment(), start_new_session=True
        )
        ended = _collect(process, began + seconds, entry, record)
        entry |= {"ended": ended, "wall_seconds": round(time.monotonic() - began, 1)}
        if ended != "well":
            said.seek(0)
            entry["said"] = said.read()[-3000:]
    record.write()
    print(f"{part.script}: ended {ended} after {entry['wall_seconds']} s, {len(entry['rows'])} rows", file=sys.stderr)
    return ended == "well"


def _collect(process: subprocess.Popen[str], deadline: float, entry: dict[str, Any], record: Record) -> str:
    """Rows until the process ends or deadline passes; returns how it ended."""
    lines: queue.Queue[str | None] = queue.Queue()
    reader = threading.Thread(target=_read, args=(process, lines), daemon=True)
    reader.start()
    try:
        while (line := lines.get(timeout=max(0.0, deadline - time.monotonic()))) is not None:
            entry["rows"].append(json.loads(line))
            record.write()
        code = process.wait(timeout=max(1.0, deadline - time.monotonic()))
    except (queue.Empty, subprocess.TimeoutExpired):
        os.killpg(process.pid, 9)
        process.wait()
        return "out of time"
    return "well" if code == 0 else f"with exit code {code}"


def _read(process: subprocess.Popen[str], lines: "queue.Queue[str | None]") -> None:
    assert process.stdout is not None
    for line in process.stdout:
        # libraries print, too
        if line.startswith('{"name"'):
            lines.put(line)
    lines.put(None)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="toy shapes: whether it works; needs --out")
    parser.add_argument("--only", nargs="*", choices=[part.script for part in PARTS], help="parts to run")
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
    record = Record(given.out, about, kept)
    options = ["--device", given.device, *(["--tiny"] if given.tiny else [])]
    well = True
    for part in PARTS:
        if given.only and part.script not in given.only:
            continue
        left = given.most_seconds - (time.monotonic() - began)
        if left < part.least_seconds:
            record.begin(part.script)["ended"] = "not begun: no time left"
            record.write()
            well = False
        else:
            # a busy machine may take long to import what toys need
            most = left if given.tiny else min(left, part.most_seconds)
            well = carry_out(part, options, most, record) and well
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
