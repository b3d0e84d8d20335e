"""One record of a data file, with where it stands."""

from collections.abc import Iterable, Mapping
from typing import Any


class Record(dict[str, Any]):
    """The fields of one record; place says where it stands ("train.jsonl, line 17"), for errors."""

    def __init__(self, fields: Mapping[str, Any], place: str) -> None:
        super().__init__(fields)
        self.place = place


def as_records(fields: Iterable[Mapping[str, Any]], name: str = "the data") -> list[Record]:
    """Records from plain dictionaries, placed by their number ("the data, record 3"); records stay as they are."""
    return [
        item if isinstance(item, Record) else Record(item, f"{name}, record {number}")
        for number, item in enumerate(fields, 1)
    ]
