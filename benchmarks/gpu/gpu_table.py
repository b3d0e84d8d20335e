"""The table of docs/gpu.md and its plot, from results/gpu.json: each figure with its aim; what no run measured says so.

    python benchmarks/gpu/gpu_table.py [--out FILE] [--write] [--plot [FILE]]

--out is the file that run.py wrote. --write puts the table into docs/gpu.md; --plot draws the kernels' shares, tokens a
second and the peaks, by default beside the file, where matplotlib is installed.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULT, PAGE = HERE.parent / "results" / "gpu.json", HERE.parents[1] / "docs" / "gpu.md"
BEGIN, END = "<!-- table: python benchmarks/gpu/gpu_table.py --write -->", "<!-- end of the table -->"
UNMEASURED = "unmeasured"
STEP, OURS, PEFT, UNSLOTH = "step, 4 x 2048", "ours", "PEFT + bitsandbytes", "Unsloth"
LARGE = "14336x4096"
DECODING, EAGER, GRAPHS = "decoding, 1 row", "eager", "CUDA graphs"
Value = float | None


class Results:
    """The rows of a run, by part, name and way; of tiny runs none, since those measure nothing."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        self.about = content
        self.parts = {} if content.get("tiny", True) else content["parts"]

    def rows(self, part: str, name: str = "") -> Iterator[Mapping[str, Any]]:
        """Rows of a part whose name starts with name."""
        rows = self.parts.get(part, {}).get("rows", [])
        return (row for row in rows if row["name"].startswith(name))

    def value(self, part: str, name: str, key: str, way: str | None = None) -> Value:
        """A number of the row of that name and way; None where it was not measured."""
        found = (row for row in self.rows(part) if row["name"] == name and way in (None, row.get("way")))
        return next((row[key] for row in found if row.get(key) is not None), None)

    def share(self, kernel: str) -> Value:
        return self.value("kernel_rates", f"{kernel}, {LARGE}", "share", "ours")

    def ratio(self, key: str, peer: str, best: Callable[[Iterable[float]], float]) -> Value:
        """A figure of our step over the best that the peer reached, in whatever way it ran."""
        found = [row for row in self.rows("qlora_step", STEP) if row["name"] == STEP and key in row]
        ours = [row[key] for row in found if row["way"] == OURS]
        theirs = [row[key] for row in found if row["way"].startswith(peer)]
        if not ours or not theirs:
            return None
        return ours[0] / best(theirs)

    def gain_of_graphs(self) -> Value:
        """Tokens a second with CUDA graphs over those without."""
        graphs, eager = (self.value("decoding", DECODING, "tokens_per_second", way) for way in (GRAPHS, EAGER))
        return None if graphs is None or eager is None else graphs / eager

    def peak(self, size: str, way: str) -> Value:
        return self.value("peaks", f"peak, {size}", "allocated", way)

    def device(self, size: str, way: str) -> Value:
        return self.value("peaks", f"peak, {size}", "device_used", way)


@dataclass(frozen=True)
class Figure:
    """A line of the table. least or most: the aim; show: how the number is written; beside: what stands behind it."""

    name: str
    read: Callable[[Results], Value]
    show: Callable[[float], str]
    least: Value = None
    most: Value = None
    beside: Callable[[Results], Value] | None = None

    @property
    def aim(self) -> str:
        if self.least is not None:
            return f"at least {self.show(self.least)}"
        return "-" if self.most is None else f"at most {self.show(self.most)}"

    def cells(self, results: Results) -> tuple[str, str, str, str]:
        """Name, aim, figure, and whether the aim was reached."""
        value = self.read(results)
        if value is None:
            return self.name, self.aim, UNMEASURED, "-"
        beside = None if self.beside is None else self.beside(results)
        shown = self.show(value) + (f" (device {self.show(beside)})" if beside is not None else "")
        if self.least is None and self.most is None:
            return self.name, self.aim, shown, "-"
        reached = value >= self.least if self.least is not None else value <= (self.most or 0)
        return self.name, self.aim, shown, "reached" if reached else "missed"


def times(value: float) -> str:
    return f"{value:.2f}x"


def percent(value: float) -> str:
    return f"{value:.0%}" if value >= 0.1 else f"{value:.1%}"


def gigabytes(value: float) -> str:
    return f"{value / 1e9:.1f} GB"


def rate(value: float) -> str:
    return f"{value / 1e9:.1f} GB/s"


def whole(value: float) -> str:
    return f"{value:,.0f}"


def peak(size: str, words: str, way: str, most: float) -> Figure:
    return Figure(
        f"{size} shape, {words}: peak",
        lambda results: results.peak(size, way),
        gigabytes,
        most=most,
        beside=lambda results: results.device(size, way),
    )


def longest(results: Results) -> Value:
    ends = (row for row in results.rows("longest") if row["name"] == "longest on 24 GB")
    return max((row["length"] for row in ends if row.get("length")), default=None)


def failed_tests(results: Results) -> Value:
    """None where they were not run to the end, and none failed until then."""
    row = next(results.rows("gpu_tests", "tests"), {"failed": None})
    return row["failed"] if row.get("finished") or row["failed"] else None


EIGHT_BIT, PAGED = "bf16 adapters, 8-bit Adam", "bf16 adapters, paged 8-bit Adam, step in the backward pass"
FULL = "f32 adapters, Adam"
FIGURES = (
    Figure("QLoRA step, 8B shape: tokens/s over PEFT + bitsandbytes",
           lambda results: results.ratio("tokens_per_second", PEFT, max), times, least=2.5),
    Figure("the same: peak memory over PEFT + bitsandbytes",
           lambda results: results.ratio("allocated", PEFT, min), times, most=0.5),
    Figure("the same: tokens/s over Unsloth",
           lambda results: results.ratio("tokens_per_second", UNSLOTH, max), times, least=1.1),
    Figure("the same: share of the measured bf16 matmul rate",
           lambda results: results.value("qlora_step", STEP, "share_of_matmul", OURS), percent, least=0.55),
    Figure("the same, without what checkpointing does again",
           lambda results: results.value("qlora_step", STEP, "share_of_model", OURS), percent),
    Figure("the same: tokens a second",
           lambda results: results.value("qlora_step", STEP, "tokens_per_second", OURS), whole),
    peak("65B", "bf16 adapters, 8-bit Adam", EIGHT_BIT, 42e9),
    peak("65B", "the same paged, step in the backward pass", PAGED, 39e9),
    peak("65B", "f32 adapters, Adam", FULL, 48e9),
    peak("7B", "bf16 adapters, 8-bit Adam", EIGHT_BIT, 5.4e9),
    peak("7B", "the same paged, step in the backward pass", PAGED, 4.7e9),
    Figure("dequantize NF4 + DQ to bf16, share of the copy rate",
           lambda results: results.share("dequantize NF4 + DQ to bf16"), percent, least=0.85),
    Figure("matrix-vector product from packed NF4, share of the read rate",
           lambda results: results.share("1 rows by packed NF4 + DQ"), percent, least=0.75),
    Figure("decoding one row, 8B shape in NF4 + LoRA, CUDA graphs: tokens a second",
           lambda results: results.value("decoding", DECODING, "tokens_per_second", GRAPHS), whole),
    Figure("the same over steps launched from Python", lambda results: results.gain_of_graphs(), times),
    Figure("the same: share of the read rate",
           lambda results: results.value("decoding", DECODING, "share", GRAPHS), percent),
    Figure("longest sequence that trains on 24 GB, 8B shape", longest, whole, least=78_476),
    Figure("memory plan against the measured peak, largest error",
           lambda results: results.value("plan_peaks", "plan, all", "worst"), percent, most=0.08),
    Figure("losses of bf16 training against the CPU's reference, largest gap",
           lambda results: results.value("against_reference", "losses, bf16", "gap"), percent, most=0.02),
    Figure("loading a checkpoint into NF4, from the page cache",
           lambda results: results.value("disk_to_gpu", "loading", "bytes_per_second", "page cache cached"), rate),
    Figure("tests of the operations that failed", failed_tests, whole, most=0),
)  # fmt: skip


def read(path: Path) -> Results:
    """The results in a file; empty ones where there is none."""
    return Results(json.loads(path.read_text()) if path.exists() else {})


def header(results: Results) -> str:
    """What the figures were measured on, in a line."""
    about = next(results.rows("facts", "about"), None)
    if about is None:
        return "No run on a GPU yet: every figure is unmeasured."
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items() if version)
    return f"{about['device']}, driver {about['driver']}, {about['date']}; {versions}; `{results.about['command']}`."


def table(results: Results) -> str:
    """The figures as Markdown."""
    lines = [header(results), "", "| figure | aim | measured | |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(figure.cells(results))} |" for figure in FIGURES]
    return "\n".join(lines)


def draw(results: Results, path: Path) -> None:
    """Shares of kernels, the step's tokens a second and peaks as bars, into path."""
    from matplotlib import pyplot

    kernels = [row for row in results.rows("kernel_rates") if "share" in row]
    steps = [row for row in results.rows("qlora_step") if "tokens_per_second" in row]
    peaks = [row for row in results.rows("peaks") if "allocated" in row]
    height = 1.5 + 0.2 * max(len(kernels), len(steps) + len(peaks))
    figure, axes = pyplot.subplot_mosaic([["kernels", "steps"], ["kernels", "peaks"]], layout="constrained")
    figure.set_size_inches(14, height)
    _bars(axes["kernels"], kernels, [row["share"] for row in kernels], "share of the copy or read rate")
    _bars(axes["steps"], steps, [row["tokens_per_second"] for row in steps], "tokens a second")
    _bars(axes["peaks"], peaks, [row["allocated"] / 1e9 for row in peaks], "peak of the allocator, GB")
    figure.savefig(path, dpi=110)


def _bars(axis: Any, rows: Sequence[Mapping[str, Any]], values: Sequence[float], unit: str) -> None:
    names = [f"{row['name'].removeprefix('peak, ').removeprefix('step, ')}, {row['way']}" for row in rows]
    peers = ("bitsandbytes", "PyTorch", PEFT, UNSLOTH)
    colours = ["#b0b7bf" if row["way"].startswith(peers) else "#1f77b4" for row in rows]
    axis.barh(names, values, color=colours)
    axis.invert_yaxis()
    axis.tick_params(axis="y", labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_xlabel(unit)


def plot(results: Results, path: Path, source: Path) -> None:
    """Draw, or say why not."""
    if not results.parts:
        print("no plot: nothing was measured", file=sys.stderr)
    elif not find_spec("matplotlib"):
        later = f"python {Path(__file__).name} --out {source.name} --plot"
        print(f"no plot: matplotlib is not installed here; where it is: {later}", file=sys.stderr)
    else:
        draw(results, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--plot", nargs="?", type=Path, const=Path())
    # run.sh hands its own arguments on
    given, _ = parser.parse_known_args()
    results = read(given.out)
    print(table(results))
    if given.write:
        before, rest = PAGE.read_text().split(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n\n{table(results)}\n\n{END}{rest.split(END)[1]}")
    if given.plot is not None:
        plot(results, given.out.with_suffix(".png") if given.plot == Path() else given.plot, given.out)


if __name__ == "__main__":
    main()
