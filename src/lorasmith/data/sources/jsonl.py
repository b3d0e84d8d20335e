"""JSON Lines: one object a line."""

import json
from pathlib import Path

from lorasmith.data.record import Record
from lorasmith.data.sources.source import read_text, sources
from lorasmith.errors import DataError


@sources.register(".ndjson")
@sources.register(".jsonl")
def read_jsonl(path: Path) -> list[Record]:
    """A record a line; blank lines are passed over."""
    return parse_lines(read_text(path), path)


def parse_lines(text: str, path: Path) -> list[Record]:
    """Records of JSON Lines text that came from path."""
    # split at line feeds alone: splitlines() would cut at the Unicode line separators that JSON strings may hold
    lines = enumerate(text.split("\n"), 1)
    return [_record(line, f"{path}, line {number}") for number, line in lines if line.strip()]


def _record(line: str, place: str) -> Record:
    try:
        fields = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{place}: not valid JSON ({error}); fix or remove the line") from error
    if not isinstance(fields, dict):
        raise DataError(f"{place}: holds a {type(fields).__name__}, not an object of named fields; fix or remove it")
    return Record(fields, place)
