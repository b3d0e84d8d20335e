"""CSV and TSV: a header line with the names of the columns, then a record a row."""

import csv
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lorasmith.data.record import Record
from lorasmith.data.sources.source import read_text, sources
from lorasmith.errors import DataError


@sources.register(".csv")
def read_csv(path: Path) -> list[Record]:
    """Records of comma-separated values; every field is a string."""
    return _read(path, ",")


@sources.register(".tsv")
def read_tsv(path: Path) -> list[Record]:
    """Records of tab-separated values; every field is a string."""
    return _read(path, "\t")


@contextmanager
def _long_fields() -> Iterator[None]:
    # the csv module refuses fields over 128 KiB by a global limit; documents are longer
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _read(path: Path, delimiter: str) -> list[Record]:
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter, strict=True)
    with _long_fields():
        try:
            header = next(reader, [])
            _check_header(header, path)
            # blank lines are empty rows
            return [_record(header, row, f"{path}, line {reader.line_num}") for row in reader if row]
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: not valid CSV ({error}); fix its quotes") from error


def _check_header(header: list[str], path: Path) -> None:
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise DataError(f"{path}, line 1: the columns {', '.join(repeated)} occur twice; give each its own name")


def _record(header: list[str], row: list[str], place: str) -> Record:
    if len(row) != len(header):
        raise DataError(
            f"{place}: has {len(row)} fields where the header names {len(header)}; fix its commas or quotes"
        )
    return Record(dict(zip(header, row, strict=True)), place)
