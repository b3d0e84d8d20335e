"""From a path or a name to records."""

import re
from pathlib import Path

from lorasmith.data.libraries import libraries
from lorasmith.data.record import Record
from lorasmith.data.sources.source import sources
from lorasmith.errors import DataError, nearest

# "imdb" or "owner/name"; anything else that is missing is a missing file
_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
# what the library of Hugging Face writes into the folders that it saves
_SAVED = ("dataset_dict.json", "state.json")


def read(source: str | Path, split: str | None = None, subset: str | None = None) -> list[Record]:
    """The records of a file, a folder of files, a saved data set, or a data set by its name on the hub.

    split picks the files of a folder whose names begin with it (its training files by default), or the split of a data
    set ("train" by default); subset is the configuration of a data set that has several. Raises DataError for a source
    that is missing (with the nearest name), empty, of an unknown format or unreadable, naming file and line.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        records = _read_folder(path, split)
    elif path.exists():
        records = _read_file(path)
    elif _is_name(str(source), path):
        records = _read_named(str(source), split, subset)
    else:
        raise DataError(f"{source} does not exist;{_nearest_file(path) or ' check the path'}")
    if not records:
        raise DataError(f"{source} holds no records; training needs at least one")
    return records


def _read_file(path: Path) -> list[Record]:
    suffix = path.suffix.lower()
    if suffix not in sources:
        raise DataError(f"{path}: files of type {suffix!r} cannot be read; known: {', '.join(sources.names())}")
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty; training needs at least one record")
        return sources[suffix](path)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check its permissions") from error


def _read_folder(path: Path, split: str | None) -> list[Record]:
    if any((path / name).is_file() for name in _SAVED):
        return libraries["huggingface"].from_folder(path, split)
    files = sorted(file for file in path.iterdir() if file.is_file() and file.suffix.lower() in sources)
    wanted = [file for file in files if file.stem.startswith(split or "train")]
    if split is None and not wanted:
        wanted = files
    if not wanted:
        names = ", ".join(file.name for file in files) or "none"
        known = ", ".join(sources.names())
        asked = f" of split {split!r}" if split else ""
        raise DataError(f"{path} has no data file{asked}; data files found: {names}; name a file of type {known}")
    return [record for file in wanted for record in _read_file(file)]


def _is_name(source: str, path: Path) -> bool:
    """Whether a missing source reads like a data set's name, and not like a file of a folder that is here."""
    in_a_folder = len(path.parts) > 1 and path.parent.is_dir()
    return _NAME.fullmatch(source) is not None and path.suffix.lower() not in sources and not in_a_folder


def _read_named(name: str, split: str | None, subset: str | None) -> list[Record]:
    try:
        return libraries["huggingface"].by_name(name, split, subset)
    except DataError as error:
        raise DataError(f"{error}{_nearest_file(Path(name))}") from error


def _nearest_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f" its folder {path.parent} does not exist either"
    return nearest(path.name, [file.name for file in path.parent.iterdir()])
