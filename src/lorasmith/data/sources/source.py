"""The table of file formats, and how all of them read text."""

from collections.abc import Callable
from pathlib import Path

from lorasmith.data.record import Record
from lorasmith.errors import DataError
from lorasmith.registry import Registry

# A source reads one file into records; it raises DataError, naming file and line, for what it cannot read.
sources: Registry[Callable[[Path], list[Record]]] = Registry("data format", "lorasmith.data.sources")


def read_text(path: Path) -> str:
    """The file as UTF-8 text without a byte order mark; DataError names the line of what is not UTF-8."""
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8"
        ) from error
