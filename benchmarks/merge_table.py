"""The table of docs/merging.md, from results/merge.json: python benchmarks/merge_table.py [--write].

Layers by the median over all of them; whole models by logits. other is relative to the adapter's effect.
"""

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from results import FOLDER

from lorasmith.atomic import write_text

PAGE = Path(__file__).resolve().parents[1] / "docs" / "merging.md"
WAYS = ("requantize", "compensate", "round", "compensate from 16 bits", "QA-LoRA, exact")
Row = dict[str, Any]


def read(folder: Path = FOLDER) -> list[Row]:
    """The rows of merge.json."""
    return json.loads((folder / "merge.json").read_text(encoding="utf-8"))["rows"]


def middle(rows: Sequence[Row], key: str) -> float:
    """The median of one number over rows."""
    return statistics.median(row[key] for row in rows)


def layer_lines(rows: Sequence[Row]) -> Iterator[Sequence[str]]:
    """A line a format and way: kept / other by size, and the distance from 16 bits over all sizes."""
    sizes = sorted({row["size"] for row in rows})
    yield ("format", "way", *(f"{size:.1%}" for size in sizes), "to 16 bits")
    for name in ("nf4", "int4", "int8"):
        for way in WAYS:
            mine = [row for row in rows if row["format"] == name and row["way"] == way]
            if not mine:
                continue
            cells = [[row for row in mine if row["size"] == size] for size in sizes]
            shown = [f"{middle(cell, 'kept'):.2f} / {middle(cell, 'other'):.2f}" for cell in cells]
            yield (name, way, *shown, f"{middle(mine, 'to_16bit'):.2f}")


def model_lines(rows: Sequence[Row]) -> Iterator[Sequence[str]]:
    """A line a merge of a whole model."""
    yield ("model", "format", "size", "way", "kept", "other", "KL", "same top", "perplexity: base, adapted, merged")
    for row in rows:
        losses = ", ".join(f"{row[f'{who}_perplexity']:.2f}" for who in ("base", "adapted", "merged"))
        numbers = (f"{row['kept']:.2f}", f"{row['other']:.2f}", f"{row['kl']:.4f}", f"{row['agreement']:.1%}")
        yield (row["model"], row["format"], f"{row['size']:.1%}", row["way"], *numbers, losses)


def markdown(lines: Iterator[Sequence[str]]) -> str:
    """Lines, the first of them the heads, as a table."""
    heads, *rest = lines
    return "".join(f"| {' | '.join(line)} |\n" for line in (heads, ["---"] * len(heads), *rest))


def tables(folder: Path = FOLDER) -> dict[str, str]:
    """The tables by the part of the results that they show."""
    rows = read(folder)
    parts = {part: [row for row in rows if row["part"] == part] for part in ("layers", "models", "trained")}
    return {
        "layers": markdown(layer_lines(parts["layers"])),
        "trained": markdown(model_lines(parts["trained"])),
        "models": markdown(model_lines(parts["models"])),
    }


def write(page: Path, found: dict[str, str]) -> None:
    """Put each table between its marks."""
    text = page.read_text(encoding="utf-8")
    for part, table in found.items():
        before, begin, rest = text.partition(f"<!-- {part}: python benchmarks/merge_table.py --write -->\n")
        _, end, after = rest.partition(f"<!-- end of {part} -->\n")
        assert begin and end, f"{page} lacks the marks of {part}"
        text = f"{before}{begin}\n{table}\n{end}{after}"
    write_text(page, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="into docs/merging.md as well")
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder that merge.json lies in")
    chosen = parser.parse_args()
    found = tables(chosen.results)
    if chosen.write:
        write(PAGE, found)
    print("\n".join(found.values()), end="")


if __name__ == "__main__":
    main()
