"""Whole embeddings and heads in an adapter's file: saved where they were resized or adapted, taken over on loading."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lorasmith.attach.adapted import Adapted
from lorasmith.attach.adapters import KEY_PREFIX, Adapters, adapters_of
from lorasmith.attach.saved_module import SavedModule
from lorasmith.attach.selection import bare, base_modules
from lorasmith.attach.site_holder import SiteHolder
from lorasmith.errors import AdapterError
from lorasmith.methods import AdapterConfig, dense_weight, named


def embedding_layers(book: Adapters) -> dict[str, nn.Module]:
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


def adapted_embeddings(book: Adapters, name: str) -> dict[str, nn.Module]:
    """Those of embedding_layers that the adapter sits on and whose base its file holds."""
    layers = embedding_layers(book)
    return {
        path: layer
        for path, layer in layers.items()
        if isinstance(layer, Adapted) and name in layer.sites and layer.sites[name].keeps_base
    }


def embedding_tensors(book: Adapters, layers: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The dense weights of layers, as they are without adapters, by their keys in a file; no quantized ones."""
    tensors, originals = {}, book.originals()
    for path, module in layers.items():
        adapted = isinstance(module, Adapted)
        base = _bare(module)
        if layer_is_dense(base):
            weight = base.get_parameter("weight")
            tensors[f"{KEY_PREFIX}{path}.{'base_layer.' if adapted else ''}weight"] = originals.get(
                weight, weight
            ).detach()
    return tensors


def layer_is_dense(module: nn.Module) -> bool:
    """Whether module holds a floating-point weight of its own."""
    weight = module._parameters.get("weight")
    return weight is not None and weight.is_floating_point()


def resized(book: Adapters, name: str) -> bool:
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


def take_embeddings(book: Adapters, state: dict[str, Tensor], own: set[str]) -> dict[str, Tensor]:
    """Remove from state, and return, whole embeddings that were saved beside the adapter."""
    return {key: state.pop(key) for key in _embedding_keys(book.model) if key in state and key not in own}


def _bare(module: nn.Module) -> nn.Module:
    """The base's own module inside the wrappers."""
    if isinstance(module, SiteHolder):
        return bare(module)[0]
    return _bare(module.original_module) if isinstance(module, SavedModule) else module


def refuse_foreign_embeddings(model: nn.Module, config: AdapterConfig, state: Mapping[str, Tensor]) -> None:
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


def resize_embeddings(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give the model as many rows as the embedding that was saved beside the adapter has."""
    rows = {state[key].shape[0] for key in _embedding_keys(model) if key in state}
    if not rows:
        return
    assert isinstance(model, PreTrainedModel)
    if rows != {dense_weight(_bare(model.get_input_embeddings())).shape[0]}:
        model.resize_token_embeddings(max(rows), mean_resizing=False)


def restore_embeddings(book: Adapters, embeddings: Mapping[str, Tensor]) -> None:
    """Put embeddings of a file into the base's layers. Raises AdapterError, before any is written, for other shapes."""
    modules = {key: _bare(module) for key, module in _embedding_keys(book.model).items()}
    places = {key: modules[key].get_parameter("weight") for key in embeddings if layer_is_dense(modules[key])}
    for key, weight in places.items():
        if weight.shape != embeddings[key].shape:
            shapes = f"{tuple(embeddings[key].shape)}, the model's {tuple(weight.shape)}"
            raise AdapterError(f"{key} has shape {shapes}; resize the model's embeddings first")
    with torch.no_grad():
        for key, weight in places.items():
            weight.copy_(embeddings[key])
