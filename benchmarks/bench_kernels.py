"""Our CPU kernels beside bitsandbytes', in one process: python benchmarks/bench_kernels.py [--size 4096].

Batches of ours and theirs alternate, so that both see the same machine. A batch is thrown away and taken again when
other processes used more than 5 % of the cores meanwhile (from /proc/stat; without that file, or with --accept-noise,
nothing is rejected, and the output says so). GB/s is the traffic that the operation cannot avoid, read and written,
and its share is of a plain copy measured in the same run. Prints one table and writes benchmarks/results/kernels.json.
"""

import argparse
import ctypes
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import bitsandbytes
import bitsandbytes.functional as theirs
import torch
from bitsandbytes.cextension import lib
from quiet import Watch, machine
from torch.nn import functional as F

from lorasmith import ops
from lorasmith.atomic import write_text
from lorasmith.formats import dynamic_map, formats

RESULT = Path(__file__).parent / "results" / "kernels.json"
BLOCKSIZE = 64
MOST_ATTEMPTS = 6  # per batch that is wanted
BATCH_SECONDS = 0.15


@dataclass(frozen=True)
class Case:
    """One operation both ways. bytes: read and written by ours; goal: theirs / ours that the project asks for."""

    name: str
    ours: Callable[[], object]
    peer: str
    theirs: Callable[[], object]
    bytes: int | None = None
    goal: float | None = None


@dataclass(frozen=True)
class Row:
    """A line of the table; times are medians over the accepted batches, in ms."""

    name: str
    peer: str
    ours_ms: float
    peer_ms: float
    ratio: float
    gb_per_s: float | None
    share_of_copy: float | None
    goal: float | None
    accepted_batches: int
    rejected_batches: int


class Clock:
    """Times batches and counts those that other processes disturbed."""

    def __init__(self, guarded: bool) -> None:
        self.guarded = guarded
        self.accepted = 0
        self.rejected = 0

    def batch(self, function: Callable[[], object]) -> float | None:
        """Median seconds of a call over a batch of calls, None if others used the cores."""
        watch, start = Watch(time.process_time()), time.perf_counter()
        times = []
        while time.perf_counter() - start < BATCH_SECONDS or len(times) < 3:
            before = time.perf_counter()
            function()
            times.append(time.perf_counter() - before)
        if self.guarded and watch.disturbed(time.process_time()):
            self.rejected += 1
            return None
        self.accepted += 1
        return statistics.median(times)

    def pair(self, ours: Callable[[], object], peer: Callable[[], object], batches: int) -> tuple[float, float]:
        """Median seconds of each over alternating accepted batches. Raises SystemExit where none was quiet."""
        ours(), peer()
        samples: tuple[list[float], list[float]] = ([], [])
        for _ in range(batches * MOST_ATTEMPTS):
            for kept, function in zip(samples, (ours, peer), strict=True):
                seconds = self.batch(function) if len(kept) < batches else None
                if seconds is not None:
                    kept.append(seconds)
            if min(map(len, samples)) >= batches:
                break
        if not all(samples):
            raise SystemExit("other processes use the cores all the time; run this on a quiet machine")
        return statistics.median(samples[0]), statistics.median(samples[1])


def quantizing(size: int) -> list[Case]:
    weight = torch.randn(size, size) * 0.02
    codebook = formats["nf4"].codebook("cpu")

    def nested(x: torch.Tensor) -> None:
        ops.double_quantize(ops.quantize_blockwise(x, codebook, BLOCKSIZE)[1])

    cases = []
    for x in (weight, weight.bfloat16()):
        dtype = str(x.dtype).removeprefix("torch.")
        traffic = x.numel() * x.element_size() + x.numel() // 2 + x.numel() // BLOCKSIZE * 4
        cases.append(
            Case(
                f"quantize {dtype} to nf4",
                lambda x=x: ops.quantize_blockwise(x, codebook, BLOCKSIZE),
                "quantize_4bit",
                lambda x=x: theirs.quantize_4bit(x, blocksize=BLOCKSIZE, quant_type="nf4"),
                traffic,
                goal=10.0,
            )
        )
    cases.append(
        Case(
            "quantize float32 to nf4, nested scales",
            lambda: nested(weight),
            "quantize_4bit",
            lambda: theirs.quantize_4bit(weight, blocksize=BLOCKSIZE, quant_type="nf4", compress_statistics=True),
            goal=10.0,
        )
    )
    return cases


@dataclass(frozen=True)
class Stored:
    """One weight in both libraries' hands; their packed bytes and scales are ours."""

    packed: torch.Tensor
    scales: torch.Tensor
    codes: torch.Tensor
    nested: ops.Nested
    codebook: torch.Tensor
    shape: tuple[int, int]
    state: theirs.QuantState

    @classmethod
    def random(cls, size: int) -> "Stored":
        codebook = formats["nf4"].codebook("cpu")
        weight = torch.randn(size, size) * 0.02
        packed, scales = ops.quantize_blockwise(weight, codebook, BLOCKSIZE)
        codes, nested_scales, offset = ops.double_quantize(scales)
        _, state = theirs.quantize_4bit(
            weight.bfloat16(), blocksize=BLOCKSIZE, quant_type="nf4", compress_statistics=True
        )
        nested = ops.Nested(nested_scales, offset, dynamic_map())
        return cls(packed, scales, codes, nested, codebook, (size, size), state)

    def dequantize(self, out: torch.Tensor, nested: bool) -> None:
        scales = self.codes if nested else self.scales
        ops.dequantize_blockwise(
            self.packed,
            scales,
            self.codebook,
            BLOCKSIZE,
            self.shape,
            out.dtype,
            nested=self.nested if nested else None,
            out=out,
        )

    def their_kernel(self, out: torch.Tensor) -> None:
        """Their C function itself, into a buffer that is reused, without nested scales (it has none)."""
        suffix = {torch.float32: "fp32", torch.bfloat16: "bf16"}[out.dtype]
        function = getattr(lib, f"cdequantize_blockwise_cpu_nf4_{suffix}")
        pointers = (ctypes.c_void_p(tensor.data_ptr()) for tensor in (self.packed, self.scales, out))
        function(*pointers, *(ctypes.c_longlong(n) for n in (BLOCKSIZE, *self.shape)))


def dequantizing(stored: Stored) -> list[Case]:
    cases = []
    for dtype, nested in ((torch.bfloat16, False), (torch.bfloat16, True), (torch.float32, False)):
        out = torch.empty(stored.shape, dtype=dtype)
        scale_bytes = stored.codes.numel() if nested else stored.scales.numel() * 4
        cases.append(
            Case(
                f"dequantize nf4 to {str(dtype).removeprefix('torch.')}{', nested scales' if nested else ''}",
                lambda out=out, nested=nested: stored.dequantize(out, nested),
                "its C kernel, plain scales",
                lambda out=out: stored.their_kernel(out),
                stored.packed.numel() + scale_bytes + out.numel() * out.element_size(),
                goal=1.0,
            )
        )
    out = torch.empty(stored.shape, dtype=torch.bfloat16)
    cases.append(
        Case(
            "dequantize nf4 to bfloat16, nested scales",
            lambda: stored.dequantize(out, nested=True),
            "dequantize_4bit",
            lambda: theirs.dequantize_4bit(stored.packed.view(-1, 1), stored.state),
        )
    )
    return cases


def linear(stored: Stored) -> list[Case]:
    dense = torch.empty(stored.shape, dtype=torch.bfloat16)
    stored.dequantize(dense, nested=True)
    packed = stored.packed.view(-1, 1)
    cases = []
    for rows in (16, 1024):
        x = torch.randn(rows, stored.shape[1]).bfloat16()

        def ours(x: torch.Tensor = x) -> torch.Tensor:
            return ops.blockwise_linear(
                x, stored.packed, stored.codes, stored.codebook, BLOCKSIZE, stored.shape, None, nested=stored.nested
            )

        name = f"linear forward bfloat16, {rows} rows"
        cases.append(Case(name, ours, "dense layer", lambda x=x: F.linear(x, dense)))
        cases.append(Case(name, ours, "matmul_4bit", lambda x=x: bitsandbytes.matmul_4bit(x, packed.t(), stored.state)))
    return cases


def copy_bandwidth(clock: Clock, batches: int) -> float:
    """GB/s of copying 256 MB into a buffer that is reused, reads and writes counted."""
    source = torch.ones(1 << 26)
    target = torch.empty_like(source)
    seconds, _ = clock.pair(lambda: target.copy_(source), lambda: target.copy_(source), batches)
    return 2 * source.numel() * 4 / seconds / 1e9


def measure(case: Case, copy_gb_per_s: float, batches: int, guarded: bool) -> Row:
    clock = Clock(guarded)
    ours, peer = clock.pair(case.ours, case.theirs, batches)
    rate = None if case.bytes is None else case.bytes / ours / 1e9
    share = None if rate is None else rate / copy_gb_per_s
    counts = (clock.accepted, clock.rejected)
    return Row(case.name, case.peer, ours * 1e3, peer * 1e3, peer / ours, rate, share, case.goal, *counts)


def line(row: Row) -> str:
    rate = "" if row.gb_per_s is None else f"{row.gb_per_s:6.1f} {row.share_of_copy:6.0%}"
    goal = "" if row.goal is None else f">= {row.goal:g}: {'reached' if row.ratio >= row.goal else 'MISSED'}"
    times = f"{row.ours_ms:9.3f} {row.peer_ms:10.3f} {row.ratio:8.2f}"
    return f"{row.name:<42} {row.peer:<27} {times} {rate:>13}  {goal:<16} {row.rejected_batches:>3}"


def about_machine() -> dict[str, object]:
    kernels = sorted({status.why for status in ops.kernel_status() if status.op == "quantize_blockwise"})
    return {**machine(), "bitsandbytes": bitsandbytes.__version__, "kernels": kernels}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=4096, help="rows and columns of the matrix")
    parser.add_argument("--batches", type=int, default=9, help="accepted batches of each")
    parser.add_argument("--accept-noise", action="store_true", help="reject nothing: for development, not for figures")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()

    guarded = Path("/proc/stat").exists() and not arguments.accept_noise
    clock = Clock(guarded)
    copy_gb_per_s = copy_bandwidth(clock, arguments.batches)
    about = {**about_machine(), "size": arguments.size, "guarded": guarded, "copy_gb_per_s": copy_gb_per_s}
    for key, value in about.items():
        print(f"{key}: {value}")
    print(f"\n{'ours':<42} {'beside':<27} {'ours ms':>9} {'theirs ms':>10} {'ratio':>8} {'GB/s  of copy':>13}  goal")
    stored = Stored.random(arguments.size)
    rows = []
    for case in [*quantizing(arguments.size), *dequantizing(stored), *linear(stored)]:
        rows.append(measure(case, copy_gb_per_s, arguments.batches, guarded))
        print(line(rows[-1]), flush=True)
    arguments.out.parent.mkdir(exist_ok=True)
    write_text(arguments.out, json.dumps({**about, "rows": [asdict(row) for row in rows]}, indent=2) + "\n")


if __name__ == "__main__":
    main()
