"""Merging an adapter into its base on disk."""

from collections.abc import Iterator
from pathlib import Path

from transformers import PreTrainedModel

from lorasmith.atomic import atomic_folder, new_folder
from lorasmith.attach import adapters_of, load_adapter, merge_and_unload
from lorasmith.doctor.place.folder import require_writable
from lorasmith.errors import AdapterError
from lorasmith.methods import method_of
from lorasmith.methods.full import Full
from lorasmith.models.checkpoint import quantization_of
from lorasmith.models.quiet import quiet_transformers
from lorasmith.recipes.adapter_fit import fitting_config
from lorasmith.recipes.base_model import DTYPES, Storage, load_base, open_base
from lorasmith.recipes.inspection import inspection_lines
from lorasmith.recipes.subject import find_subject, tokenizer_of


def merge_adapter(
    path: str, out: Path, *, base: str | None, dtype: str, device: str, trust_remote_code: bool = False
) -> Iterator[str]:
    """Writes to out the dense model of type dtype with the adapter at path merged in; yields lines on what was done.

    The sum is made on the weights as the base stores them: in 16 or 32 bits, unless the base itself is quantized.
    Raises AdapterError for a path without an adapter, InputError for an out that holds anything, WriteError where it
    cannot be written: before a weight is read.
    """
    out = new_folder(out)
    subject = find_subject(path, base=base, trust_remote_code=trust_remote_code)
    if not subject.adapters:
        raise AdapterError(f"{path} is no adapter and no run; name the folder of one, and the base with --model")
    checkpoint = open_base(subject.base)
    tokenizer = tokenizer_of(subject, checkpoint)
    (name, folder) = next(iter(subject.adapters.items()))
    config = fitting_config(folder, checkpoint)
    require_writable(out)
    # whole tensors were trained where the run's base kept them dense, beside the rounded ones that it did not
    whole = isinstance(method_of(config), Full) and subject.storage.quantization is not None
    storage = subject.storage if whole else Storage(subject.storage.task, None, subject.storage.labels)
    if whole or quantization_of(checkpoint.config) is not None:
        how = "was trained on" if whole else "is stored"
        yield f"note: {subject.base.path} {how} quantized; its rounding is part of the merged weights"
    # summed in 32 bits and rounded once
    loaded = load_base(subject.base, storage, device)
    load_adapter(loaded.model, folder, name, config=config)
    adapted = len(list(adapters_of(loaded.model).adapted()))
    merged = merge_and_unload(loaded.model, [name], DTYPES[dtype])
    assert isinstance(merged, PreTrainedModel)
    with quiet_transformers(), atomic_folder(out) as temporary:
        merged.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    yield f"merged {folder} into {adapted} layers of {subject.base.path}"
    yield from inspection_lines(str(out))
