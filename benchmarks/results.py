"""Results of contests: written as JSON with what they were made on, and printed as one table."""

import json
import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lorasmith.atomic import write_text

FOLDER = Path(__file__).parent / "results"
GIB = 2**30


def peers() -> dict[str, str]:
    """Versions of the libraries that ours is set beside."""
    return {name: version(name) for name in ("lorasmith", "peft", "bitsandbytes", "transformers", "accelerate")}


def spread(times: Sequence[float]) -> dict[str, Any]:
    """Median, least, quartiles and most of seconds."""
    quartiles = statistics.quantiles(times, method="inclusive") if len(times) > 1 else [*times] * 3
    middle = [quartiles[0], quartiles[2]]
    return {"seconds": statistics.median(times), "least": min(times), "quartiles": middle, "most": max(times)}


def save(name: str, about: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], folder: Path = FOLDER) -> None:
    """Write NAME.json into folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / f"{name}.json", json.dumps({**about, "rows": list(rows)}, indent=1) + "\n")


def table(title: str, about: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """A contest's rows; columns are its own, heading -> key. Ratios are to the first row in the same heat."""
    known = {"peak GiB": "peak", "anon": "anonymous", "file": "file", "loading": "load_peak", "live": "live"}
    memory = {head: key for head, key in known.items() if key in rows[0]}
    heads = ["seconds", "least", "most", "n", "out", "x ours", *columns, *memory]
    rates = ", ".join(f"{name} {rate / 1e9:.1f} G/s" for name, rate in about.get("limits", {}).items())
    lines = [f"\n{title} ({rates})", " " * 46 + "".join(f"{head:>11}" for head in heads)]
    for row in rows:
        over = ">" if row["note"] == "over" else ""
        cells = [f"{over}{row['seconds']:.3g}", *(f"{row[key]:.3g}" for key in ("least", "most"))]
        cells += [str(row["samples"]), str(row["rejected"]), f"{over}{row['ratio']:.2f}"]
        cells += [_cell(key, row.get(key)) for key in columns.values()]
        cells += ["" if row[key] is None else f"{row[key] / GIB:.2f}" for key in memory.values()]
        lines.append(f"{row['name']:<46}" + "".join(f"{cell:>11}" for cell in cells) + f"  {row['note']}")
    return "\n".join(lines)


def _cell(key: str, value: float | None) -> str:
    # a contestant that was ended has told nothing
    if value is None:
        return ""
    return f"{value:.0%}" if "share" in key else f"{value:.1f}"
