"""What a run folder holds, read with patience: a page is made of whatever is there."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

Record = Mapping[str, Any]


@dataclass(frozen=True)
class RunData:
    """The parts of a run folder. A missing file is an empty part, a damaged one is empty and named in damaged."""

    name: str
    recipe: Record = field(default_factory=dict)
    recipe_text: str = ""
    plan: Record = field(default_factory=dict)
    metrics: tuple[Record, ...] = ()
    evaluation: Record = field(default_factory=dict)
    summary: Record = field(default_factory=dict)
    damaged: tuple[str, ...] = ()

    def series(self, field_name: str) -> list[tuple[float, float]]:
        """Points (step, value) of one field of metrics.jsonl, in order; what is no finite number is left out."""
        points = [(number(line.get("step")), number(line.get(field_name))) for line in self.metrics]
        return [(step, value) for step, value in points if step is not None and value is not None]

    def scores(self, when: str) -> dict[str, Record]:
        """Metric -> {value, low, high, n} of "before" or "after"; value is None where it is not finite."""
        given = {name: mapping(one) for name, one in mapping(self.evaluation.get(when)).items()}
        return {
            name: {**one, "value": number(one["value"])}
            for name, one in given.items()
            if "value" in one and (one["value"] is None or type(one["value"]) in (float, int))
        }

    def samples(self) -> list[Record]:
        """Generations with their prompts."""
        listed = self.evaluation.get("samples")
        return [one for one in listed if isinstance(one, Mapping)] if isinstance(listed, list) else []


def read_run(folder: Path) -> RunData:
    """Everything of folder that a page shows."""
    damaged: list[str] = []
    recipe_text = _text(folder / "recipe.yaml", damaged)
    return RunData(
        name=folder.resolve().name,
        recipe=_parsed(recipe_text, yaml.safe_load, "recipe.yaml", damaged),
        recipe_text=recipe_text,
        plan=_parsed(_text(folder / "plan.json", damaged), json.loads, "plan.json", damaged),
        metrics=_lines(_text(folder / "metrics.jsonl", damaged), damaged),
        evaluation=_parsed(_text(folder / "evaluation.json", damaged), json.loads, "evaluation.json", damaged),
        summary=_parsed(_text(folder / "summary.json", damaged), json.loads, "summary.json", damaged),
        damaged=tuple(damaged),
    )


def number(value: object) -> float | None:
    """value as a finite float, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < float("inf") else None


def mapping(value: object) -> Record:
    """value where it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def _text(path: Path, damaged: list[str]) -> str:
    if not path.is_file():
        return ""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        damaged.append(f"{path.name} ({type(error).__name__})")
        return ""


def _parsed(text: str, parse: Any, name: str, damaged: list[str]) -> Record:
    if not text.strip():
        return {}
    try:
        content = parse(text)
    except (ValueError, yaml.YAMLError):
        content = None
    if not isinstance(content, Mapping):
        damaged.append(name)
        return {}
    return content


def _lines(text: str, damaged: list[str]) -> tuple[Record, ...]:
    kept: list[Record] = []
    for place, line in enumerate(text.splitlines(), 1):
        if line.strip():
            kept.append(_parsed(line, json.loads, f"metrics.jsonl, line {place}", damaged))
    return tuple(line for line in kept if line)
