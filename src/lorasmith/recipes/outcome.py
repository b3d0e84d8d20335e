"""What a run leaves besides its adapter: evaluation.json and summary.json."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lorasmith.atomic import write_text
from lorasmith.json_text import NOT_FINITE, json_text

SUMMARY = "summary.json"


@dataclass
class Outcome:
    """Scores and generations before and after; the latter stay empty until training is over.

    Scores are {metric: {value, low, high, n}}, in the file null for a number that is not finite; change holds after -
    before with paired intervals, where both were scored in one process.
    """

    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None
    change: dict[str, Any] | None = None
    samples: list[dict[str, str | None]] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """Writes evaluation.json."""
        write_text(path, json_text(asdict(self), indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, path: Path) -> "Outcome | None":
        """What write wrote; None where there is no such file yet."""
        return cls(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None

    def lines(self) -> list[str]:
        """A line a metric: before and after, with 95 % intervals."""
        scored = self.after or {}
        names = [name for name, score in scored.items() if "value" in score]
        return [f"{name}: {shown(self.before, name)} -> {shown(scored, name)}" for name in names]


@dataclass(frozen=True)
class Summary:
    """The run in numbers; null in the file for one that is not finite.

    peak_memory_bytes is of the process, or of tensors on the accelerator; peak_reserved_bytes what torch took from a
    CUDA device for them, None elsewhere.
    """

    model: str
    method: str
    trainable_parameters: int
    total_parameters: int
    model_bytes: int
    adapter_bytes: int
    steps: int
    loss: float
    best_metric: float | None
    best_step: int | None
    stopped_because: str
    seconds: float
    peak_memory_bytes: int
    peak_reserved_bytes: int | None = None

    def write(self, folder: Path) -> None:
        """Writes summary.json into the run folder."""
        write_text(folder / SUMMARY, json_text(asdict(self), indent=2) + "\n")


def shown(scores: dict[str, Any] | None, name: str) -> str:
    """A score with its interval, in words."""
    if not scores or name not in scores:
        return "not scored"
    estimate = scores[name]
    value, low, high = (_number(estimate[end]) for end in ("value", "low", "high"))
    return value if value == NOT_FINITE else f"{value} ({low} to {high})"


def _number(value: float | None) -> str:
    return NOT_FINITE if value is None or not math.isfinite(value) else f"{value:.4f}"
