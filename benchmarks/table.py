"""One table of all speed results that are committed, as markdown: python benchmarks/table.py [--write].

With --write it also replaces the table in docs/benchmarks.md. A ratio is the peer's best over ours, so more than one is
better; goals are held against it, and are open where a bound or a missing result leaves them so. figures.py says what
is set beside what.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from figures import FIGURES, GIB, Figure, Goal, kernel_goal
from results import FOLDER

from lorasmith.atomic import write_text

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- table: python benchmarks/table.py --write -->\n", "<!-- end of the table -->\n"
HEADS = ("figure", "ours", "peer's default", "peer's best", "ratio", "of the limit", "asked", "made on")
DEFAULT_KERNELS = ("quantize_4bit", "dequantize_4bit", "matmul_4bit")
NOTHING = "-"


def read(folder: Path, stem: str) -> list[dict[str, Any]]:
    """The result STEM.json, and STEM_avx2.json or the like, where another processor's is kept beside it."""
    paths = [folder / f"{stem}.json", *sorted(folder.glob(f"{stem}_avx*.json"))]
    return [json.loads(path.read_text()) for path in paths if path.exists()]


def shown(row: Mapping[str, Any] | None, key: str) -> str:
    """A row's value with its unit; a bound where its contestant was ended."""
    if row is None or row.get(key) is None:
        return "not run"
    value = row[key]
    if key == "peak":
        return f"{value / GIB:.2f} GiB"
    return f"over {time(value)}" if row["note"] == "over" else time(value)


def time(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def verdict(goal: Goal, ratio: float | None, share: float | None, ours: float, bound: bool = False) -> str:
    """The goal and whether it is reached; bound means that ratio is one, which may be more."""
    if not goal.text:
        return NOTHING
    missed = (goal.share is not None and share is not None and share < goal.share) or (
        goal.most is not None and ours > goal.most
    )
    unknown = goal.share is not None and share is None
    if goal.ratio is not None and (ratio is None or ratio < goal.ratio):
        unknown, missed = unknown or bound or ratio is None, missed or (ratio is not None and not bound)
    return f"{goal.text}: {'missed' if missed else 'open' if unknown else 'reached'}"


def made_on(about: Mapping[str, Any]) -> str:
    vectors = about.get("vectors") or about["kernels"][0].split()[0].upper()
    noise = "" if about.get("guarded", True) else ", noise accepted"
    return f"{about['processor']}, {vectors}, {about['date']}{noise}"


def contest_line(figure: Figure, about: Mapping[str, Any]) -> Sequence[str]:
    rows = [row for row in about["rows"] if all(row[key] == value for key, value in figure.where.items())]
    named = {row["name"]: row for row in rows}
    ours = named.get(figure.ours)
    name = figure.name.format_map(about)
    if ours is None or ours["note"] == "over":
        return (name, shown(ours, figure.key), *[NOTHING] * 4, figure.goal.text or NOTHING, made_on(about))
    peers = [named[name] for name in figure.peers if name in named]
    # of memory as well it is the fastest peer's that counts; speeds compare within a heat, as the rows' ratios do
    best = min(peers, key=lambda row: row["ratio"], default=None)
    compared = "ratio" if figure.key == "seconds" else figure.key
    ratio = None if best is None else best[compared] / ours[compared]
    share = ours.get("share_of_limit") if figure.key == "seconds" else None
    default, best_shown = NOTHING, NOTHING
    if figure.peers:
        default, best_shown = shown(named.get(figure.peers[0]), figure.key), shown(best, figure.key)
    bound = best is not None and best["note"] == "over"
    return (
        name,
        shown(ours, figure.key),
        default,
        best_shown,
        NOTHING if ratio is None else f"{'over ' if bound else ''}{ratio:.2f}",
        NOTHING if share is None else f"{share:.0%}",
        verdict(figure.goal, ratio, share, ours[figure.key], bound),
        made_on(about),
    )


def kernel_line(row: Mapping[str, Any], about: Mapping[str, Any]) -> Sequence[str]:
    shape = row.get("shape") or f"{about['size']}x{about['size']}"
    peer = time(row["peer_ms"] / 1e3)
    is_default = row["peer"] in DEFAULT_KERNELS
    goal = kernel_goal(row["name"], shape, row["peer"])
    share = row["share_of_copy"]
    return (
        f"{row['name']}, {shape}, beside {row['peer']}",
        time(row["ours_ms"] / 1e3),
        peer if is_default else NOTHING,
        NOTHING if is_default else peer,
        f"{row['ratio']:.2f}",
        NOTHING if share is None else f"{share:.0%}",
        verdict(goal, row["ratio"], share, row["ours_ms"]),
        made_on(about),
    )


def loss_lines(about: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    """The greatest difference of each case over all its seeds and steps, as a share of the loss."""
    cases = sorted({(row["model"], row["activations"]) for row in about["rows"]})
    for model, activations in cases:
        rows = [row for row in about["rows"] if (row["model"], row["activations"]) == (model, activations)]
        greatest = max(row["greatest"] for row in rows)
        ours, peer = (sum(row[who][-1] for row in rows) / len(rows) for who in ("ours", "peft"))
        name = f"loss after {about['steps']} steps, {model}, {activations}, greatest difference {greatest:.1g}"
        goal = f"within 0.5 %: {'reached' if greatest <= 0.005 else 'missed'}"
        yield name, f"{ours:.4f}", f"{peer:.4f}", NOTHING, NOTHING, NOTHING, goal, made_on(about)


def lines(folder: Path) -> Iterator[Sequence[str]]:
    for about in read(folder, "kernels"):
        for row in about["rows"]:
            yield kernel_line(row, about)
    for figure in FIGURES:
        found = read(folder, figure.result)
        for about in found:
            yield contest_line(figure, about)
        if not found and figure.goal.text:
            yield (figure.name, "not measured", *[NOTHING] * 4, figure.goal.text, NOTHING)
    for about in read(folder, "loss"):
        yield from loss_lines(about)


def markdown(folder: Path = FOLDER) -> str:
    """The whole table."""
    rows = [HEADS, ["---"] * len(HEADS), *lines(folder)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def write(page: Path, table: str) -> None:
    """Put table between the marks of page."""
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin and end, f"{page} lacks the marks of the table"
    write_text(page, f"{before}{begin}\n{table}\n{end}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md as well")
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder that the results lie in")
    chosen = parser.parse_args()
    table = markdown(chosen.results)
    if chosen.write:
        write(PAGE, table)
    print(table, end="")


if __name__ == "__main__":
    main()
