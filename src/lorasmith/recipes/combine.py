"""Several adapters on disk as one, without their base model."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from lorasmith.atomic import atomic_folder, new_folder
from lorasmith.attach import Composition, Part, compose, distance_from_sum, read_adapter, write_adapter
from lorasmith.doctor.place.folder import require_writable
from lorasmith.errors import InputError
from lorasmith.models.generation_config import GENERATION, read_generation_config
from lorasmith.models.tokenizer import has_tokenizer, load_tokenizer
from lorasmith.recipes.inspection import inspection_lines
from lorasmith.recipes.subject import find_adapter


def combine_adapters(
    paths: Sequence[str], weights: Sequence[float], composition: Composition, out: Path
) -> Iterator[str]:
    """Writes to out the weighted sum of the adapters at paths; yields lines on what was done and what was lost.

    The tokenizer that was saved with the first one comes along. No weights: equal shares. Raises AdapterError for a
    path without an adapter, AttachError for adapters that have no such sum, InputError for an out that holds anything
    and for another number of weights than of paths.
    """
    out = new_folder(out)
    shares = list(weights) or [1 / max(1, len(paths))] * len(paths)
    if len(shares) != len(paths):
        raise InputError(f"{len(paths)} adapters and {len(shares)} weights; give one weight an adapter")
    folders = [find_adapter(Path(path).expanduser()) for path in paths]
    parts = [Part(path, read_adapter(folder), share) for path, folder, share in zip(paths, folders, shares)]
    require_writable(out)
    made = compose(parts, composition)
    with atomic_folder(out) as temporary:
        write_adapter(made, temporary)
        _copy_company(folders[0], temporary)
    yield " + ".join(f"{share:g} x {path}" for path, share in zip(paths, shares))
    if made.config.METHOD == "LORA":
        yield f"distance from the exact weighted sum: {100 * distance_from_sum(parts, made):.2f} % of its size"
    yield from inspection_lines(str(out))


def _copy_company(source: Path, target: Path) -> None:
    if has_tokenizer(source):
        load_tokenizer(source).save_pretrained(target)
    if read_generation_config(source) is not None:
        shutil.copyfile(source / GENERATION, target / GENERATION)
