"""Data sets of Hugging Face: by name on the hub or from its cache, or saved to a folder."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lorasmith.data.libraries.library import Library, libraries
from lorasmith.data.record import Record
from lorasmith.errors import DataError, nearest

try:
    import datasets
except ImportError:  # an optional extra
    datasets = None


class HuggingFace(Library):
    """The `datasets` library."""

    def by_name(self, name: str, split: str | None, subset: str | None) -> list[Record]:
        """The split (by default "train") of a data set; its files are fetched once and cached."""
        _require(name)
        wanted = split or "train"
        try:
            rows = datasets.load_dataset(name, subset, split=wanted)
        # the library lets errors of files, networks, builders and splits through as they come
        except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            reason = str(error).strip().splitlines()[0].rstrip(".")
            raise DataError(
                f"{name} is neither a file nor a data set that could be loaded ({reason}); check the name, the split "
                "and the network"
            ) from error
        return _records(rows, f"{name}, split {wanted}")

    def from_folder(self, folder: Path, split: str | None) -> list[Record]:
        """The rows of a saved data set, or of the split (by default "train") of a saved dictionary of them."""
        _require(str(folder))
        try:
            saved = datasets.load_from_disk(str(folder))
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            raise DataError(f"{folder} is no readable data set ({str(error).splitlines()[0]})") from error
        if not isinstance(saved, datasets.DatasetDict):
            return _records(saved, str(folder))
        wanted = split or "train"
        if wanted not in saved:
            known = ", ".join(saved)
            raise DataError(f"{folder} has no split {wanted!r}; its splits: {known}.{nearest(wanted, saved)}")
        return _records(saved[wanted], f"{folder}, split {wanted}")


def _require(name: str) -> None:
    if datasets is None:
        raise DataError(f"{name} is no file; loading it as a data set needs: pip install 'lorasmith[data]'")


def _records(rows: Iterable[Mapping[str, Any]], name: str) -> list[Record]:
    return [Record(row, f"{name}, row {number}") for number, row in enumerate(rows, 1)]


libraries.add("huggingface", HuggingFace())
