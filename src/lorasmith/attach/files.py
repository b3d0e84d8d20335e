"""Adapters as files: PEFT's folder with `adapter_config.json` and `adapter_model.safetensors`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lorasmith.atomic import atomic_path
from lorasmith.attach.adapters import Adapters, adapters_of
from lorasmith.attach.class_names import name_classes_, read_class_names, write_class_names
from lorasmith.attach.content import AdapterContent
from lorasmith.attach.placing import place_adapter
from lorasmith.attach.saved_embeddings import refuse_foreign_embeddings, resize_embeddings
from lorasmith.attach.state import SaveEmbeddings, adapter_state, check_keys, load_adapter_state
from lorasmith.attach.undoing import undone_on_error
from lorasmith.errors import AdapterError
from lorasmith.methods import (
    CLASSIFICATION,
    AdapterConfig,
    InputMethod,
    SiteMethod,
    TargetedConfig,
    method_of,
    read_config,
)

WEIGHTS_FILE = "adapter_model.safetensors"


def save_adapter(
    model: nn.Module, folder: str | Path, name: str = "default", save_embeddings: SaveEmbeddings = "auto"
) -> Path:
    """Write the adapter into folder as PEFT does; a name other than "default" gets a folder of its own inside.

    Returns the folder that the files lie in; a classifier's names of its classes lie beside PEFT's files.
    """
    book = adapters_of(model)
    book.check(name)
    home = Path(folder) if name == "default" else Path(folder) / name
    write_adapter(content_of(book, name, save_embeddings), home)
    return home


def write_adapter(content: AdapterContent, folder: str | Path) -> None:
    """Write an adapter's files into folder."""
    folder = Path(folder)
    # safetensors refuses tensors that share memory, as tied embeddings do
    state = {key: value.clone().contiguous().cpu() for key, value in content.state.items()}
    with atomic_path(folder / WEIGHTS_FILE) as path:
        save_file(state, path, metadata={"format": "pt"})
    config = content.config
    type(config).from_dict(config.to_dict() | {"inference_mode": True}).save_pretrained(folder)
    if content.class_names and config.task_type in CLASSIFICATION:
        write_class_names(folder, content.class_names)


def read_adapter(folder: str | Path, config: AdapterConfig | None = None) -> AdapterContent:
    """What folder holds of an adapter; config is its own, where it was read before.

    Raises AdapterError for a folder without an adapter, and damaged or pickled weights.
    """
    config = config or read_config(folder)
    names = read_class_names(folder) if config.task_type in CLASSIFICATION else ()
    return AdapterContent(config, read_adapter_tensors(folder), names)


def load_adapter(
    model: nn.Module,
    folder: str | Path,
    name: str = "default",
    trainable: bool = False,
    float32: bool = True,
    config: AdapterConfig | None = None,
    *,
    skip_mismatched: bool = False,
) -> Adapters:
    """Attach the adapter that lies in folder and load its tensors; it trains only if trainable.

    config is the folder's own, where it was read before. The model's config gets the names of a classifier's classes.
    skip_mismatched is for load_adapter_state.
    An adapter of this name is replaced; one that trains on, and that was saved in another form than it trains in, takes
    the tensors over instead. Raises AdapterError for a folder without an adapter, damaged or pickled
    weights, and tensors that do not fit; then the model is as it was.
    """
    content = read_adapter(folder, config)
    content.config.inference_mode = not trainable
    _refuse_half_of_it(folder, content.config)
    try:
        return attach_content(model, content, name, float32, skip_mismatched=skip_mismatched)
    except AdapterError as error:
        raise AdapterError(f"{Path(folder) / WEIGHTS_FILE}: {error}") from None


def attach_content(
    model: nn.Module,
    content: AdapterContent,
    name: str = "default",
    float32: bool = True,
    *,
    skip_mismatched: bool = False,
) -> Adapters:
    """Attach an adapter whose tensors are given; one of this name is replaced.

    Raises AdapterError for tensors that do not fit; then the model is as it was.
    """
    book = adapters_of(model)
    if not content.config.inference_mode and _continues(book, name, content.config):
        _take_exported_(book, name, content.state)
        return book
    with undone_on_error(book):
        if name in book.configs:
            book.remove(name)
        refuse_foreign_embeddings(model, content.config, content.state)
        resize_embeddings(model, content.state)
        place_adapter(book, content.config, name, float32, fresh=False)
        load_adapter_state(model, content.state, name, skip_mismatched=skip_mismatched)
        if content.class_names:
            # the adapter acts since it was attached
            name_classes_(model, content.class_names)
    return book


def content_of(book: Adapters, name: str, save_embeddings: SaveEmbeddings = False) -> AdapterContent:
    """What a file holds of an attached adapter, in tensors that are the model's own wherever it trains in that form."""
    own = adapter_state(book.model, name, save_embeddings)
    state = {**own, **{key: value.detach() for key, value in book.exported(name).items()}}
    return AdapterContent(_exported_config(book, name), state, book.class_names.of(name, book.active))


def _refuse_half_of_it(folder: str | Path, config: AdapterConfig) -> None:
    """Raise AdapterError where training is to go on from a file that lacks something that trains."""
    method = method_of(config)
    missing = method.missing_in_files(config) if isinstance(method, InputMethod) else None
    if missing and not config.inference_mode:
        raise AdapterError(
            f"{Path(folder)} holds what {config.METHOD} made, without {missing}, so it cannot train on; load it for "
            "inference, or resume its run, whose checkpoints hold everything"
        )


def _exported_config(book: Adapters, name: str) -> AdapterConfig:
    config = book.configs[name]
    method = method_of(config)
    if not isinstance(method, SiteMethod):
        return config
    assert isinstance(config, TargetedConfig)
    return method.exported(config)


def _continues(book: Adapters, name: str, saved: AdapterConfig) -> bool:
    """Whether the adapter of this name has a form of its own to train in, and would be saved with the config saved."""
    if name not in book.configs:
        return False
    exported = _exported_config(book, name)
    return exported is not book.configs[name] and _placement(exported) == _placement(saved)


def _placement(config: AdapterConfig) -> dict[str, Any]:
    """The fields that decide which tensors an adapter has and what they do."""
    fields = config.to_dict()
    for name in ("base_model_name_or_path", "inference_mode", "auto_mapping", "revision", "task_type"):
        del fields[name]
    return {name: sorted(value) if isinstance(value, list) else value for name, value in fields.items()}


def _take_exported_(book: Adapters, name: str, state: Mapping[str, Tensor]) -> None:
    places = book.exported(name)
    check_keys({key: value for key, value in state.items() if key in places}, places, lenient=set())
    book.unmerge()
    own = book.tensors(name)
    # what lies beside the sites' tensors first: it may not fit
    load_adapter_state(book.model, {key: own[key] if key in places else state[key] for key in state}, name)
    with torch.no_grad():
        book.take_exported_(name, state)
    book.activate([name], trainable=True)


def read_adapter_tensors(folder: str | Path) -> dict[str, Tensor]:
    """The tensors of folder's adapter_model.safetensors by key.

    Raises AdapterError where the file is missing, pickled or damaged.
    """
    path = Path(folder) / WEIGHTS_FILE
    if not path.is_file():
        pickled = path.with_suffix(".bin")
        if pickled.is_file():
            raise AdapterError(f"{pickled} is a pickle, which can run code; convert it to {WEIGHTS_FILE} first")
        raise AdapterError(f"{path} does not exist; name a folder that holds a saved adapter")
    return read_tensor_file(path)


def read_tensor_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by key.

    Raises AdapterError where it is missing, pickled or damaged.
    """
    if not path.is_file():
        raise AdapterError(f"{path} does not exist; name a safetensors file")
    if path.suffix in (".bin", ".pt", ".pth", ".pkl"):
        raise AdapterError(f"{path} is a pickle, which can run code; convert it to safetensors first")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise AdapterError(f"{path} is damaged ({error}); copy or download it again") from None
