"""Adapters as files: PEFT's folder with `adapter_config.json` and `adapter_model.safetensors`."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from lorasmith.atomic import atomic_path
from lorasmith.attach.adapted import Adapted
from lorasmith.attach.adapters import KEY_PREFIX, PROMPT_KEY, Adapters, adapters_of
from lorasmith.attach.class_names import name_classes_, read_class_names, write_class_names
from lorasmith.attach.content import AdapterContent
from lorasmith.attach.older_layouts import from_older_layouts
from lorasmith.attach.placing import attach
from lorasmith.attach.saved_module import SavedModule
from lorasmith.attach.selection import bare, base_modules
from lorasmith.attach.site_holder import SiteHolder
from lorasmith.errors import AdapterError, LorasmithError
from lorasmith.methods import (
    CLASSIFICATION,
    AdapterConfig,
    InputMethod,
    SiteMethod,
    TargetedConfig,
    config_from_fields,
    dense_weight,
    method_of,
    named,
    read_config_fields,
)

log = logging.getLogger(__name__)

WEIGHTS_FILE = "adapter_model.safetensors"
SaveEmbeddings = bool | Literal["auto"]


def adapter_state(
    model: nn.Module, name: str = "default", save_embeddings: SaveEmbeddings = "auto"
) -> dict[str, Tensor]:
    """The adapter's tensors by their keys in PEFT's file, detached, without the adapter's name.

    save_embeddings adds the embeddings (and an untied head); "auto" does so where they were resized or adapted.
    """
    book = adapters_of(model)
    state = {key: value.detach() for key, value in book.saved_tensors(name).items()}
    if book.prompted is not None and name in book.prompted.encoder:
        state[PROMPT_KEY] = book.prompted.of(name).stored()
    state |= book.base_tensors.values(name)
    if save_embeddings is True or (save_embeddings == "auto" and _resized(book, name)):
        # the adapter's own tensors win over the originals of the same name
        state = _embedding_tensors(_embedding_layers(book)) | state
    elif save_embeddings == "auto":
        state = _embedding_tensors(_adapted_embeddings(book, name)) | state
    return state


def load_adapter_state(
    model: nn.Module, state: Mapping[str, Tensor], name: str = "default", *, skip_mismatched: bool = False
) -> None:
    """Load tensors with PEFT's keys into an attached adapter.

    skip_mismatched leaves those of another shape as they are in the model, and logs their names. Raises AdapterError,
    listing them, for missing or unexpected keys and for other shapes; then nothing is loaded.
    """
    book = adapters_of(model)
    book.check(name)
    state = book.restored_tensors(name, from_older_layouts(book, name, state))
    places = book.tensors(name)
    base = book.base_tensors.values(name)
    embeddings = _take_embeddings(book, state, set(places) | set(base))
    prompt = book.prompted.of(name) if book.prompted is not None and name in book.prompted.encoder else None
    wanted = places | base | ({PROMPT_KEY: prompt.stored()} if prompt is not None else {})
    skipped = _take_mismatched(state, wanted) if skip_mismatched else set()
    lenient = _untrained_biases(book, state, wanted) | book.repeated_keys(name) | skipped
    _check_keys(state, wanted, lenient=lenient)
    _restore_embeddings(book, embeddings)
    with torch.no_grad():
        for key, value in state.items():
            if key in places:
                places[key].copy_(value)
            elif key in base:
                book.base_tensors.load(name, key, value)
            elif key == PROMPT_KEY and prompt is not None:
                prompt.load_embeddings(value)
    for _, site in book.sites(name):
        site.loaded()


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
    config = config or config_from_fields(read_config_fields(folder))
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
    replaced = _as_it_trains(book, name) if name in book.configs else None
    before = list(book.active)
    prompt = book.prompted.encoder[name] if book.prompted is not None and name in book.prompted.encoder else None
    if replaced is not None:
        book.remove(name)
    try:
        return _attach_loaded(model, content, name, float32, skip_mismatched)
    except LorasmithError:
        if name in book.configs:
            book.remove(name)
        if replaced is not None:
            _attach_loaded(model, replaced, name, float32)
            if prompt is not None and book.prompted is not None:
                # with what no file holds: the encoder of its virtual tokens
                book.prompted.encoder[name] = prompt
        book.activate(before)
        raise


def content_of(book: Adapters, name: str, save_embeddings: SaveEmbeddings = False) -> AdapterContent:
    """What a file holds of an attached adapter, in tensors that are the model's own wherever it trains in that form."""
    own = adapter_state(book.model, name, save_embeddings)
    state = {**own, **{key: value.detach() for key, value in book.exported(name).items()}}
    return AdapterContent(_exported_config(book, name), state, book.class_names.of(name, book.active))


def _as_it_trains(book: Adapters, name: str) -> AdapterContent:
    state = adapter_state(book.model, name, save_embeddings=False)
    return AdapterContent(book.configs[name], state, book.class_names.of(name, book.active))


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
    _check_keys({key: value for key, value in state.items() if key in places}, places, lenient=set())
    with torch.no_grad():
        book.take_exported_(name, state)
    own = book.tensors(name)
    load_adapter_state(book.model, {key: own[key] if key in places else state[key] for key in state}, name)
    book.activate([name], trainable=True)


def _attach_loaded(
    model: nn.Module, content: AdapterContent, name: str, float32: bool, skip_mismatched: bool = False
) -> Adapters:
    _refuse_foreign_embeddings(model, content.config, content.state)
    _resize_embeddings(model, content.state)
    book = attach(model, content.config, name, float32, fresh=False)
    load_adapter_state(model, content.state, name, skip_mismatched=skip_mismatched)
    if content.class_names:
        # the adapter acts since it was attached
        name_classes_(model, content.class_names)
    return book


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


def _check_keys(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], lenient: set[str]) -> None:
    problems = [f"missing {key}" for key in wanted if key not in state and key not in lenient]
    problems += [f"unexpected {key}" for key in state if key not in wanted and key not in lenient]
    problems += [
        f"{key} has shape {tuple(state[key].shape)}, the model needs {tuple(wanted[key].shape)}"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise AdapterError(f"the adapter does not fit the model: {'; '.join(problems[:5])}{more}")


def _take_mismatched(state: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> set[str]:
    """Remove from state the tensors of another shape than the model's; returns their keys."""
    found = {key for key in state if key in wanted and state[key].shape != wanted[key].shape}
    for key in sorted(found):
        shapes = tuple(state.pop(key).shape), tuple(wanted[key].shape)
        log.warning("%s has shape %s and the model needs %s: it is left out", key, *shapes)
    return found


def _untrained_biases(book: Adapters, state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> set[str]:
    """Keys of biases that one of PEFT's files may lack or add.

    With bias="lora_only" PEFT saves none of the adapted modules' biases, and with "all" also those of heads.
    """
    if not any(key.endswith(".bias") for key in wanted):
        return set()
    model_biases = {f"{KEY_PREFIX}{path}.bias" for path, module in base_modules(book.model) if path}
    return {key for key in state if key in model_biases}


def _embedding_layers(book: Adapters) -> dict[str, nn.Module]:
    """The input embedding and, if it is not tied, the head, by path."""
    model = book.model
    if not isinstance(model, PreTrainedModel):
        return {}
    wanted = [layer for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer is not None]
    found = {path: module for path, module in base_modules(model) if any(module is layer for layer in wanted)}
    weights: dict[int, str] = {}
    for path, module in found.items():
        weights.setdefault(id(_bare(module)._parameters.get("weight")), path)
    return {path: found[path] for path in weights.values()}


def _adapted_embeddings(book: Adapters, name: str) -> dict[str, nn.Module]:
    layers = _embedding_layers(book)
    return {
        path: layer
        for path, layer in layers.items()
        if isinstance(layer, Adapted) and name in layer.sites and layer.sites[name].keeps_base
    }


def _embedding_tensors(layers: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    tensors = {}
    for path, module in layers.items():
        adapted = isinstance(module, Adapted)
        base = _bare(module)
        if layer_is_dense(base):
            tensors[f"{KEY_PREFIX}{path}.{'base_layer.' if adapted else ''}weight"] = dense_weight(base)
    return tensors


def layer_is_dense(module: nn.Module) -> bool:
    """Whether module holds a floating-point weight of its own."""
    weight = module._parameters.get("weight")
    return weight is not None and weight.is_floating_point()


def _resized(book: Adapters, name: str) -> bool:
    """Whether the vocabulary differs from that of the base's folder, as far as that is at hand."""
    base = book.configs[name].base_model_name_or_path
    config = Path(base) / "config.json" if base else None
    if config is None or not config.is_file():
        return False
    rows = json.loads(config.read_text(encoding="utf-8")).get("vocab_size")
    current = getattr(book.model.config, "vocab_size", rows)
    return rows is not None and rows != current


def _embedding_keys(model: nn.Module) -> dict[str, nn.Module]:
    """Every key under which a file may hold the input embedding or the head, and the module that it means."""
    if not isinstance(model, PreTrainedModel):
        return {}
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    return {
        f"{KEY_PREFIX}{path}.{deeper}weight": module
        for path, module in base_modules(model)
        if any(module is layer for layer in layers)
        for deeper in ("", "base_layer.")
    }


def _take_embeddings(book: Adapters, state: dict[str, Tensor], own: set[str]) -> dict[str, Tensor]:
    """Remove from state, and return, whole embeddings that were saved beside the adapter."""
    return {key: state.pop(key) for key in _embedding_keys(book.model) if key in state and key not in own}


def _bare(module: nn.Module) -> nn.Module:
    """The base's own module inside the wrappers."""
    if isinstance(module, SiteHolder):
        return bare(module)[0]
    return _bare(module.original_module) if isinstance(module, SavedModule) else module


def _refuse_foreign_embeddings(model: nn.Module, config: AdapterConfig, state: Mapping[str, Tensor]) -> None:
    """Raise AdapterError where the file's own embeddings would change what other adapters stand on."""
    if not adapters_of(model).configs:
        return
    for key, module in _embedding_keys(model).items():
        layer = _bare(module)
        if key not in state or not layer_is_dense(layer):
            continue
        weight = layer.get_parameter("weight")
        path = key.removeprefix(KEY_PREFIX).removesuffix(".weight")
        # a module that the adapter trains whole is a copy of its own, and only has to have as many rows
        own = any(named(path, name) for name in config.modules_to_save or [])
        if state[key].shape != weight.shape or not (own or _same(state[key], weight)):
            raise AdapterError(f"{key} differs from the model's, on which other adapters stand; load it alone")


def _same(ours: Tensor, theirs: Tensor) -> bool:
    return torch.equal(ours.to(theirs), theirs)


def _resize_embeddings(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give the model as many rows as the embedding that was saved beside the adapter has."""
    rows = {state[key].shape[0] for key in _embedding_keys(model) if key in state}
    if not rows:
        return
    assert isinstance(model, PreTrainedModel)
    if rows != {dense_weight(_bare(model.get_input_embeddings())).shape[0]}:
        model.resize_token_embeddings(max(rows), mean_resizing=False)


@torch.no_grad()
def _restore_embeddings(book: Adapters, embeddings: Mapping[str, Tensor]) -> None:
    modules = _embedding_keys(book.model)
    for key, value in embeddings.items():
        base = _bare(modules[key])
        if not layer_is_dense(base):
            continue
        weight = base.get_parameter("weight")
        if weight.shape != value.shape:
            shapes = f"{tuple(value.shape)}, the model's {tuple(weight.shape)}"
            raise AdapterError(f"{key} has shape {shapes}; resize the model's embeddings first")
        weight.copy_(value)
