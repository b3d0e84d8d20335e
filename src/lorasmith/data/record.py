"""One record of a data file, with where it stands."""

from collections.abc import Iterable, Mapping
from typing import Any

from lorasmith.errors import DataError


class Record(dict[str, Any]):
    """The fields of one record; place says where it stands ("train.jsonl, line 17"), for errors."""

    def __init__(self, fields: Mapping[str, Any], place: str) -> None:
        super().__init__(fields)
        self.place = place


def as_records(fields: Iterable[Mapping[str, Any]], name: str = "the data") -> list[Record]:
    """Records from plain dictionaries, placed by their number ("the data, record 3"); records stay as they are.

    Raises DataError for one that is no dictionary.
    """
    return [_placed(item, f"{name}, record {number}") for number, item in enumerate(fields, 1)]


def _placed(item: object, place: str) -> Record:
    if isinstance(item, Record):
        return item
    if not isinstance(item, Mapping):
        raise DataError(f'{place}: holds a {type(item).__name__}, not named fields; write {{"text": ...}}')
    return Record(item, place)
