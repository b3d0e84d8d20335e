"""metrics.jsonl: a line a logged step. Every run writes it, so it is no entry of the table."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from lorasmith.atomic import write_text
from lorasmith.errors import WriteError
from lorasmith.json_text import json_text


class JsonLines:
    """Appends one JSON object a line, each written out at once; null stands for what is not finite."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: TextIO | None = None

    def start(self, step: int, total_steps: int) -> None:
        """Drop lines of later steps, and a half line at the end, so that no step occurs twice after a resume."""
        kept = [line for line in _lines(self.path) if _step(line) <= step]
        write_text(self.path, "".join(f"{line}\n" for line in kept))
        self._file = self.path.open("a", encoding="utf-8")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        assert self._file is not None, "start comes before log"
        line = json_text({"step": step, **values, "time": time.time()})
        try:
            self._file.write(line + "\n")
            self._file.flush()
        except OSError as error:
            raise WriteError(f"{self.path} could not be written: {error.strerror}; free some space") from error

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _step(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        # half a line, from a kill: later than every step
        return float("inf")
