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
    """The output is a folder, or can become one, and a file can be written where it will stand.

    Raises WriteError with the reason: a missing permission, a full disk, a read-only file system.
    """
    if place.output.exists() and not place.output.is_dir():
        yield error(f"output={place.output} is a file; name a folder")
    else:
        probe(next(path for path in [place.output, *place.output.parents] if path.is_dir()))


def probe(folder: Path) -> None:
    """Writes and removes a small file in folder."""
    path = folder / ".lorasmith-probe"
    write_bytes(path, bytes(PROBE_BYTES))
    path.unlink()
