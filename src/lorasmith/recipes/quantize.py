"""Quantizing a checkpoint on disk."""

from collections.abc import Iterator
from pathlib import Path

from lorasmith.atomic import new_folder
from lorasmith.doctor.place.folder import require_writable
from lorasmith.errors import ModelError
from lorasmith.models.checkpoint import quantization_of
from lorasmith.models.save import save_quantized
from lorasmith.recipes.base_model import Storage, load_base, open_base, report_lines
from lorasmith.recipes.inspection import inspection_lines
from lorasmith.recipes.sections import ModelSection, QuantizationSection, Task


def quantize_checkpoint(
    base: ModelSection, storage: QuantizationSection, out: Path, *, task: Task, device: str
) -> Iterator[str]:
    """Writes base to out with its linear layers stored as storage says; yields lines on what was done.

    Raises ModelError for a base that is quantized already, FormatError for weights that the format cannot hold,
    InputError for an out that holds anything, WriteError where it cannot be written; all but the second before a weight
    is read.
    """
    out = new_folder(out)
    storage.scheme()
    checkpoint = open_base(base)
    if quantization_of(checkpoint.config) is not None:
        raise ModelError(f"{base.path} is quantized already; take the 16-bit model that it was made from")
    require_writable(out)
    loaded = load_base(base, Storage(task, storage), device)
    yield from report_lines(loaded)
    save_quantized(loaded.model, loaded.tokenizer, out)
    yield from inspection_lines(str(out))
