"""Files and folders that are written whole or not at all."""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from lorasmith.errors import InputError, WriteError

_REASONS = {
    errno.ENOSPC: "the disk is full; free some space or choose another folder",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another folder",
    errno.EACCES: "no write permission; choose another folder or change its permissions",
    errno.EPERM: "no write permission; choose another folder or change its permissions",
    errno.EROFS: "the file system is read-only; choose another folder",
}


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _refusal(path, error.errno, error) from error
    except SafetensorError as error:
        # it writes files itself, and tells of the disk in words alone
        found = re.search(r"os error (\d+)", str(error))
        if found is None:
            raise
        raise _refusal(path, int(found[1]), error) from error


def _refusal(path: Path, number: int | None, error: Exception) -> WriteError:
    reason = _REASONS.get(number or 0) or (os.strerror(number) if number else str(error))
    return WriteError(f"{path} could not be written: {reason}")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside path that takes its place when the block ends well, and vanishes otherwise.

    Raises WriteError, naming path and the reason, for a full disk or a missing permission.
    """
    path = Path(path)
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            _sync(temporary)
            # mkstemp makes private files; a result is as readable as any other file of its folder
            temporary.chmod(0o666 & ~_umask())
            os.replace(temporary, path)
            _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def new_folder(path: str | Path) -> Path:
    """The absolute path of a folder that is still to be filled: nothing stands there, or an empty folder.

    Raises InputError for a file, a folder that holds anything, and the folder that the process works in.
    """
    path = Path(path).expanduser().resolve()
    if Path.cwd().is_relative_to(path):
        raise InputError(f"{path} is the folder that this runs in, or above it; name a new folder to write")
    with _explained(path):
        for part in (path, *path.parents):
            if part.exists() and not part.is_dir():
                raise InputError(f"{part} is a file; name a new folder to write")
        if path.is_dir() and any(path.iterdir()):
            raise InputError(f"{path} holds files already, which are not overwritten; name a new folder to write")
    return path


@contextmanager
def atomic_folder(path: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """A temporary folder beside path that takes its place when the block ends well, and vanishes otherwise.

    Only with replace may path hold anything: the old folder is moved aside first and removed last, so one of the two is
    whole at any time. Otherwise raises InputError as new_folder does, before anything is written.
    """
    path = Path(path).absolute() if replace else new_folder(path)
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        try:
            yield temporary
            for file in sorted(temporary.rglob("*")):
                _sync(file)
            temporary.chmod(0o777 & ~_umask())
            (_swap_in if replace else os.replace)(temporary, path)
            _sync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _swap_in(temporary: Path, path: Path) -> None:
    if not path.exists():
        os.replace(temporary, path)
        return
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    os.replace(path, old)
    os.replace(temporary, path)
    shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write data to path, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Write text to path as UTF-8, whole or not at all."""
    write_bytes(path, text.encode())
