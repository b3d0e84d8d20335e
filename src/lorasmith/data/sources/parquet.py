"""Parquet: columns of typed values."""

from pathlib import Path

from lorasmith.data.record import Record
from lorasmith.data.sources.source import sources
from lorasmith.errors import DataError

try:
    import pyarrow
    import pyarrow.parquet
except ImportError:  # an optional extra
    pyarrow = None


@sources.register(".parquet")
def read_parquet(path: Path) -> list[Record]:
    """A record a row."""
    if pyarrow is None:
        raise DataError(f"{path}: reading Parquet needs pyarrow; pip install 'lorasmith[data]'")
    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: is no readable Parquet file ({reason}); write it again") from error
    return [Record(row, f"{path}, row {number}") for number, row in enumerate(rows, 1)]
