"""An adapter that another program wrote, as PEFT's files."""

from collections.abc import Iterator
from pathlib import Path

from lorasmith.atomic import atomic_folder, new_folder
from lorasmith.attach import read_tensor_file, write_adapter
from lorasmith.attach.foreign import Loralib, from_loralib
from lorasmith.doctor.place.folder import require_writable
from lorasmith.errors import AdapterError
from lorasmith.recipes.inspection import inspection_lines


def convert_adapter(path: str, facts: Loralib, out: Path) -> Iterator[str]:
    """Writes to out the adapter in the file at path, a state dict of loralib; yields lines on what it holds.

    Raises AdapterError for a file that is missing, pickled, damaged or of another layout, InputError for an out that
    holds anything.
    """
    out = new_folder(out)
    file = Path(path).expanduser()
    if file.is_dir():
        raise AdapterError(f"{path} is a folder; name the file of the state dict inside")
    tensors = read_tensor_file(file)
    try:
        content = from_loralib(tensors, facts)
    except AdapterError as error:
        raise AdapterError(f"{path}: {error}") from None
    require_writable(out)
    with atomic_folder(out) as temporary:
        write_adapter(content, temporary)
    yield f"converted {path}; its scaling is taken to be {facts.alpha:g} / rank, which the file does not say"
    yield from inspection_lines(str(out))
