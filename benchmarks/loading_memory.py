"""Peak memory of loading a 1.1B-shape checkpoint into NF4 with double quantization, each way in a fresh process.

    python benchmarks/loading_memory.py [--out benchmarks/results/loading_memory.json]

Bound: bytes of the quantized model + its two largest tensors + 600 MiB. Our loader is held to it with all of its
resident memory (VmHWM, as the kernel kept it); transformers' hook, which maps every shard, with its anonymous memory
(RssAnon, sampled every 5 ms), and the file pages are reported beside it. Linux only. Exit code 1 where a bound is
exceeded. The checkpoint (2.2 GB) is made in a temporary folder and removed.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from make_checkpoint import Shape, make_checkpoint

MIB = 2**20
ALLOWANCE = 600 * MIB
WAYS = ("loader", "hook")
SAMPLE_SECONDS = 0.005


def status() -> dict[str, int]:
    """The memory lines of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    pairs = [line.split(":") for line in lines if line.startswith(("VmHWM", "VmRSS", "RssAnon", "RssFile"))]
    return {name: int(value.split()[0]) * 1024 for name, value in pairs}


class Sampler(threading.Thread):
    """Keeps the largest anonymous and file-backed resident memory that it sees."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peaks = {"RssAnon": 0, "RssFile": 0}
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(SAMPLE_SECONDS):
            now = status()
            self.peaks = {name: max(peak, now[name]) for name, peak in self.peaks.items()}


def measure(way: str, folder: Path) -> dict[str, float]:
    """Load folder one way in this process and say what it took."""
    # only the process that measures may pay for these imports, and they are part of what is measured
    from lorasmith.models.load import load
    from lorasmith.models.quantization_config import QuantizationConfig
    from lorasmith.quantized import Scheme, stored_bytes

    imported = status()["VmRSS"]
    sampler = Sampler()
    sampler.start()
    started = time.perf_counter()
    if way == "loader":
        model = load(folder, scheme=Scheme()).model
    else:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, quantization_config=QuantizationConfig())
    seconds = time.perf_counter() - started
    sampler.done.set()
    sampler.join()
    return {
        "seconds": round(seconds, 2),
        "imports": imported,
        "model": stored_bytes(model),
        "peak": status()["VmHWM"],
        "anonymous_peak": sampler.peaks["RssAnon"],
        "file_peak": sampler.peaks["RssFile"],
    }


def in_fresh_process(way: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--way", way, "--folder", str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def two_largest(shape: Shape) -> int:
    sizes = sorted((2 * torch.Size(size).numel() for _, size in shape.tensors()), reverse=True)
    return sum(sizes[:2])


def report(shape: Shape, results: dict[str, dict[str, float]]) -> dict[str, Any]:
    bound = results["loader"]["model"] + two_largest(shape) + ALLOWANCE
    held = {"loader": results["loader"]["peak"], "hook": results["hook"]["anonymous_peak"]}
    return {
        "shape": vars(shape),
        "bound": bound,
        "two_largest_tensors": two_largest(shape),
        "ways": results,
        "within": {way: held[way] < bound for way in WAYS},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "machine": platform.processor() or platform.machine(),
        "date": time.strftime("%Y-%m-%d"),
    }


def lines(result: dict[str, Any]) -> list[str]:
    head = f"{'MiB':<8}{'imports':>10}{'model':>10}{'peak RSS':>10}{'anonymous':>11}{'file pages':>12}{'seconds':>9}"
    rows = [head]
    for way, found in result["ways"].items():
        columns = ("imports", "model", "peak", "anonymous_peak", "file_peak")
        values = [found[name] / MIB for name in columns]
        rows.append(
            f"{way:<8}{values[0]:>10.0f}{values[1]:>10.0f}{values[2]:>10.0f}{values[3]:>11.0f}{values[4]:>12.0f}"
            f"{found['seconds']:>9.1f}"
        )
    rows.append(f"bound {result['bound'] / MIB:.0f} MiB (the loader's peak RSS, the hook's anonymous peak)")
    rows += [f"{way}: {'within' if result['within'][way] else 'ABOVE'} the bound" for way in WAYS]
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "loading_memory.json")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(measure(arguments.way, arguments.folder)))
        return 0
    shape = Shape()
    with tempfile.TemporaryDirectory(prefix="lorasmith-loading-") as folder:
        make_checkpoint(Path(folder), shape)
        results = {way: in_fresh_process(way, Path(folder)) for way in WAYS}
    result = report(shape, results)
    print("\n".join(lines(result)))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if all(result["within"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
