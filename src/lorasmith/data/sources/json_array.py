"""JSON: a list of objects, or an object with one such list in it."""

import json
from pathlib import Path
from typing import Any

from lorasmith.data.record import Record
from lorasmith.data.sources.jsonl import parse_lines
from lorasmith.data.sources.source import read_text, sources
from lorasmith.errors import DataError


@sources.register(".json")
def read_json(path: Path) -> list[Record]:
    """A record for each object of the list. JSON Lines under the suffix .json are read as such."""
    text = read_text(path)
    if not text.strip():
        return []
    try:
        whole = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            return parse_lines(text, path)
        raise DataError(f"{path}, line {error.lineno}: not valid JSON ({error.msg}); fix the line") from error
    return [_record(fields, f"{path}, record {number}") for number, fields in enumerate(_rows(whole, path), 1)]


def _rows(whole: Any, path: Path) -> list[Any]:
    if isinstance(whole, list):
        return whole
    lists = [value for value in whole.values() if isinstance(value, list)] if isinstance(whole, dict) else []
    if len(lists) == 1 and all(isinstance(row, dict) for row in lists[0]):
        return list(lists[0])
    raise DataError(f"{path}: is not a list of records; write [{{...}}, {{...}}], or one object a line as .jsonl")


def _record(fields: Any, place: str) -> Record:
    if not isinstance(fields, dict):
        raise DataError(f"{place}: holds a {type(fields).__name__}, not an object of named fields; fix or remove it")
    return Record(fields, place)
