"""Merging adapters into the base, in place or for good, and taking them off."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain

import torch
from torch import nn
from transformers import PreTrainedModel

from lorasmith.attach.adapters import Adapters, adapters_of
from lorasmith.attach.saved_module import SavedModule
from lorasmith.attach.site_holder import SiteHolder
from lorasmith.attach.tying import move_together, tied_groups
from lorasmith.errors import AttachError
from lorasmith.quantized import QuantizedWeight, dense_module

log = logging.getLogger(__name__)


def merge_in_place(model: nn.Module, names: list[str] | None = None) -> None:
    """Add adapters (default: the active ones) to the weights of a dense base; `unmerge` restores every bit.

    The merged adapters are the active ones afterwards. Raises AttachError, before anything is changed, over a quantized
    base, for a weight that another module shares, and for an adapter that no change of the weights can express.
    """
    book = adapters_of(model)
    chosen = _mergeable(book, names)
    uses = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    together = _moving_together(model, chosen)
    touched = [(path, adapted) for path, adapted in book.adapted() if any(name in adapted.sites for name in chosen)]
    for path, adapted in touched:
        if isinstance(adapted.base_layer, QuantizedWeight):
            raise AttachError(f"{path} is quantized: merging in place would erase small adapters; merge and unload")
        if uses[id(adapted.target)] > 1 and path not in chain(*together):
            raise AttachError(f"{path} shares its weight with another module; merge and unload, which unties them")
        if adapted.adds_bias(chosen):
            raise AttachError(f"{path}: the adapter has a bias and the base has none; merge and unload instead")
    book.enable(True)
    book.activate(chosen)
    followers = {path for group in together for path in group[1:]}
    for path, adapted in touched:
        if path in followers:
            adapted.follow_(chosen)
        else:
            adapted.merge_(chosen)


def unmerge(model: nn.Module) -> None:
    """Undo merge_in_place, bit for bit."""
    adapters_of(model).unmerge()


def merge_and_unload(model: nn.Module, names: list[str] | None = None, dtype: torch.dtype | None = None) -> nn.Module:
    """The dense model with adapters (default: the active ones) merged, nothing of them left.

    Each weight is summed in f32 and rounded once to dtype (default: the type it was loaded in). Quantized layers
    become dense. A merged weight that was tied to another is untied, and the config says so. Raises AttachError, before
    anything is changed, for an adapter that no change of the weights can express.
    """
    book, chosen, together = _ready(model, names)
    # from the innermost wrapper out, so that the paths of what follows stay true
    for path, adapted in reversed(list(book.adapted())):
        model.set_submodule(path, adapted.merged_layer(chosen, dtype))
    _drop_book(model, book, together)
    make_dense(model, dtype)
    return model.requires_grad_(False)


def replace_and_unload(model: nn.Module, layers: Mapping[str, nn.Module], names: list[str] | None = None) -> nn.Module:
    """The model with layers, by path, in place of what stood there, nothing left of the adapters that they hold.

    Adapted modules that layers does not name become dense, adapters (default: the active ones) merged. What is
    quantized stays so. Raises AttachError as merge_and_unload does.
    """
    book, chosen, together = _ready(model, names)
    for path, layer in layers.items():
        model.set_submodule(path, layer)
    for path, adapted in reversed(list(book.adapted())):
        model.set_submodule(path, adapted.merged_layer(chosen, None))
    _drop_book(model, book, together)
    return model.requires_grad_(False)


@contextmanager
def replaced(model: nn.Module, layers: Mapping[str, nn.Module]) -> Iterator[None]:
    """While the block runs, layers stand in the model, by path; then what was there is back, also after errors."""
    before = {path: model.get_submodule(path) for path in layers}
    try:
        for path, layer in layers.items():
            model.set_submodule(path, layer)
        yield
    finally:
        for path, module in before.items():
            model.set_submodule(path, module)


def require_mergeable(model: nn.Module, names: list[str] | None = None) -> None:
    """Raise AttachError for adapters (default: the active ones) that no change of the weights can express."""
    _mergeable(adapters_of(model), names)


def _ready(model: nn.Module, names: list[str] | None) -> tuple[Adapters, list[str], list[list[str]]]:
    book = adapters_of(model)
    chosen = _mergeable(book, names)
    book.unmerge()
    book.enable(True)
    book.activate(chosen)
    together = _moving_together(model, chosen)
    _untie(model, book, together)
    return book, chosen, together


def _drop_book(model: nn.Module, book: Adapters, together: list[list[str]]) -> None:
    for path, saved in list(book.saved_modules()):
        model.set_submodule(path, saved.acting)
    if book.prompted is not None:
        book.prompted.detach()
    for first, *others in together:
        for other in others:
            model.get_submodule(other).weight = model.get_submodule(first).weight
    del model.__dict__["adapters_book"]


def unload(model: nn.Module) -> nn.Module:
    """The base model as it was before any adapter."""
    book = adapters_of(model)
    unmerge(model)
    for name in list(book.configs):
        book.remove(name)
    del model.__dict__["adapters_book"]
    return model


def make_dense(model: nn.Module, dtype: torch.dtype | None = None) -> None:
    """Replace every quantized layer by a dense one and drop the quantization from the config; cast to dtype."""
    for path, module in list(model.named_modules()):
        if isinstance(module, QuantizedWeight):
            model.set_submodule(path, dense_module(module))
    if dtype is not None:
        model.to(dtype)
    if not isinstance(model, PreTrainedModel):
        return
    if dtype is not None:
        model.config.dtype = dtype
    for holder, name in ((model, "hf_quantizer"), (model.config, "quantization_config")):
        if name in holder.__dict__:
            delattr(holder, name)
    model.__dict__.pop("quantization_method", None)
    model.__dict__["is_quantized"] = False
    model.config.__dict__.pop("_is_quantized", None)


def _mergeable(book: Adapters, names: list[str] | None) -> list[str]:
    chosen = list(book.active) if names is None else list(names)
    for name in chosen:
        book.check(name)
        if book.configs[name].is_prompt_learning:
            raise AttachError(f"adapter {name!r} is a soft prompt and cannot be merged into weights; keep the adapter")
        for path, site in book.sites(name):
            reason = site.refuses_merge()
            if reason is not None:
                raise AttachError(f"{path}: {reason} and cannot be merged into a weight; keep the adapter")
    return chosen


def _moving_together(model: nn.Module, chosen: list[str]) -> list[list[str]]:
    """Groups of layers with one weight that the adapters change in the same way, so that it stays one."""
    groups = []
    for group in tied_groups(model):
        first, *others = (model.get_submodule(path) for path in group)
        if isinstance(first, SiteHolder | SavedModule) and all(move_together(first, other, chosen) for other in others):
            groups.append(group)
    return groups


def _untie(model: nn.Module, book: Adapters, together: list[list[str]]) -> None:
    """Say in the config that embedding and head differ, where one of two tied weights is about to change."""
    if not isinstance(model, PreTrainedModel) or not getattr(model.config, "tie_word_embeddings", False):
        return
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    apart = [module for path, module in [*book.adapted(), *book.saved_modules()] if path not in chain(*together)]
    if any(module is layer for layer in layers for module in apart):
        log.warning("the embedding and the head are no longer tied: the adapter changes one of them")
        model.config.tie_word_embeddings = False
