"""Can the run folder be written?"""

from collections.abc import Iterator
from pathlib import Path

from lorasmith.atomic import write_bytes
from lorasmith.doctor.finding import Finding, error
from lorasmith.doctor.place.registry import Place, place_checks

# a page or two: an empty file can be made on a disk that is full
PROBE_BYTES = 8192


@place_checks.register("folder")
def folder(place: Place) -> Iterator[Finding]:
    """The output is a folder, or can become one, and a file can be written where it will stand."""
    parts = (place.output, *place.output.parents)
    file = next((part for part in parts if part.exists() and not part.is_dir()), None)
    if file is not None:
        yield error(f"output={place.output}: {file} is a file; name a folder")
    else:
        require_writable(place.output)


def require_writable(output: Path) -> None:
    """Writes and removes a small file where output will stand.

    Raises WriteError with the reason: a missing permission, a full disk, a read-only file system.
    """
    standing = next(path for path in [output, *output.absolute().parents] if path.is_dir())
    probe = standing / ".lorasmith-probe"
    write_bytes(probe, bytes(PROBE_BYTES))
    probe.unlink()
