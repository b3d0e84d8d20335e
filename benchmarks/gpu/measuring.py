"""Time and memory on the device that is measured: a GPU by its own clock and allocator, a CPU for a smoke alone.

Kernels are timed in CUDA graphs where they can be captured, so that what Python needs to launch them does not count,
and over as many copies of their data as pass the last cache.
"""

import argparse
import gc
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from live_tensors import LiveTensors

Call = Callable[[], object]
# several times the last cache of every GPU so far (H200: 60 MB)
PAST_CACHES = 256 << 20
# an idle GPU raises its clock over tenths of a second
WARM_SECONDS, WARM_AGAIN_SECONDS = 0.5, 0.03
STANDBY = "LORASMITH_GPU_STANDBY"
"""Set by run.py for a process that it starts ahead of its turn: that waits for a line with the seconds it then has."""


@dataclass(frozen=True)
class Place:
    """Where a part runs, and until when (time.monotonic).

    tiny: toy shapes, to see that it works; its figures mean nothing.
    """

    device: torch.device
    tiny: bool
    ends: float = math.inf

    @property
    def left(self) -> float:
        """Seconds that the part still has."""
        return self.ends - time.monotonic()

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"


def place(doc: str | None) -> Place:
    """The place that the command line of a part names."""
    return place_of(command_line(doc).parse_args())


def command_line(doc: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="toy shapes: whether it works, not how fast")
    return parser


def place_of(arguments: argparse.Namespace) -> Place:
    ends = _told_to_go()
    device = torch.device(arguments.device)
    if device.type == "cuda" and device.index is None:
        # some of torch.cuda's functions want the number
        device = torch.device("cuda", torch.cuda.current_device())
    return Place(device, arguments.tiny, ends)


def _told_to_go() -> float:
    """Wait for this process's turn, where it was started ahead of it; returns when it has to be done."""
    # processes that this one starts do not wait
    if os.environ.pop(STANDBY, None) is None:
        return math.inf
    seconds = sys.stdin.readline()
    if not seconds:
        sys.exit("run.py is gone")
    return time.monotonic() + float(seconds)


def tell(name: str, **row: Any) -> None:
    """One result, a line of JSON, to whoever started this part."""
    print(json.dumps({"name": name, **row}), flush=True)


@contextmanager
def told(name: str, **about: Any) -> Iterator[dict[str, Any]]:
    """A row to fill, which is told at the end; with the error instead where it fails, and the part goes on."""
    row: dict[str, Any] = {}
    try:
        yield row
    # whatever a library or the device raises: the rows after this one are wanted all the same
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {error}"[:600]
    tell(name, **about, **row)
    forget()


def forget() -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def wait(device: torch.device) -> None:
    """Until the device has done all it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def copies(size: int, where: Place) -> int:
    """How many copies of size bytes a rotation needs to pass the caches."""
    return 2 if where.tiny else max(2, -(-PAST_CACHES // max(size, 1)))


def rotating(calls: Sequence[Call], where: Place, rounds: int = 7) -> dict[str, Any]:
    """Median seconds of one of calls, which do the same on data of their own; and how they were timed."""
    for call in calls[:2]:
        call()
    wait(where.device)
    if not where.on_gpu:
        return {"seconds": statistics.median(_on_cpu(calls) for _ in range(3)), "timed": "cpu"}
    run, how = _captured(calls)
    _warm_up(run, where, WARM_AGAIN_SECONDS)
    times = [_on_gpu(run) / len(calls) for _ in range(rounds)]
    return {"seconds": statistics.median(times), "least": min(times), "most": max(times), "timed": how}


def _warm_up(run: Call, where: Place, seconds: float) -> None:
    """Keep the device busy with run, so that its clock is up."""
    began = time.perf_counter()
    while where.on_gpu and time.perf_counter() - began < seconds:
        run()
        wait(where.device)


def _on_cpu(calls: Sequence[Call]) -> float:
    began = time.perf_counter()
    for call in calls:
        call()
    return (time.perf_counter() - began) / len(calls)


def _on_gpu(run: Call) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def _captured(calls: Sequence[Call]) -> tuple[Call, str]:
    """One function that makes all calls: a CUDA graph, or Python where what they do cannot be captured."""

    def one_by_one() -> list[object]:
        # results that live on at once lie apart: memory used anew by each call would stay in the caches
        return [call() for call in calls]

    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            one_by_one()
    except RuntimeError as error:
        torch.cuda.synchronize()
        print(f"not captured: {error}", file=sys.stderr)
        return one_by_one, "launched from Python"
    graph.replay()
    torch.cuda.synchronize()
    return graph.replay, "CUDA graph"


def device_used(device: torch.device) -> int:
    """Bytes of the device that are taken, by the driver, unified memory and other processes too; 0 of a CPU."""
    if device.type != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info(device)
    return total - free


@contextmanager
def peak(device: torch.device) -> Iterator[dict[str, int]]:
    """Fills in, at the end, the most bytes while the block ran: allocated and reserved by PyTorch.

    On a CPU allocated counts live tensors.
    """
    found: dict[str, int] = {}
    forget()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield found
        torch.cuda.synchronize(device)
        found["allocated"] = torch.cuda.max_memory_allocated(device)
        found["reserved"] = torch.cuda.max_memory_reserved(device)
    else:
        with LiveTensors() as live:
            yield found
        found["allocated"] = live.peak


def rates(where: Place) -> Mapping[str, float]:
    """What the device can do at most, measured: bytes a second read and copied (both ways), bf16 FLOP a second."""
    size = 64 if where.tiny else 8192
    count = 1 << (12 if where.tiny else 30)
    a, b = (torch.randn(size, size, device=where.device).bfloat16() for _ in range(2))
    product = torch.empty_like(a)
    source, target = (torch.ones(count // 4, device=where.device) for _ in range(2))
    _warm_up(lambda: torch.mm(a, b, out=product), where, WARM_SECONDS)
    calls: dict[str, tuple[int, Call]] = {
        "matmul_bfloat16": (2 * size**3, lambda: torch.mm(a, b, out=product)),
        "copy": (2 * count, lambda: target.copy_(source)),
        "read": (count, source.sum),
    }
    return {name: work / rotating([call] * 4, where)["seconds"] for name, (work, call) in calls.items()}
