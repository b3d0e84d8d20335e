"""An adapter's tensors by their keys in PEFT's file, out of a model and into one."""

import logging
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from lorasmith.attach.adapters import KEY_PREFIX, PROMPT_KEY, Adapters, adapters_of
from lorasmith.attach.older_layouts import from_older_layouts
from lorasmith.attach.saved_embeddings import (
    adapted_embeddings,
    embedding_layers,
    embedding_tensors,
    resized,
    restore_embeddings,
    take_embeddings,
)
from lorasmith.attach.selection import base_modules
from lorasmith.errors import AdapterError

log = logging.getLogger(__name__)

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
    if save_embeddings is True or (save_embeddings == "auto" and resized(book, name)):
        # the adapter's own tensors win over the originals of the same name
        state = embedding_tensors(book, embedding_layers(book)) | state
    elif save_embeddings == "auto":
        state = embedding_tensors(book, adapted_embeddings(book, name)) | state
    return state


def load_adapter_state(
    model: nn.Module, state: Mapping[str, Tensor], name: str = "default", *, skip_mismatched: bool = False
) -> None:
    """Load tensors with PEFT's keys into an attached adapter.

    skip_mismatched leaves those of another shape as they are in the model, and logs their names. Raises AdapterError
    for an adapter that is merged, and, listing them, for missing or unexpected keys and for other shapes; then nothing
    is loaded.
    """
    book = adapters_of(model)
    book.check(name)
    if any(name in holder.merged for _, holder in book.adapted()):
        raise AdapterError(f"adapter {name!r} is merged into the base, where new tensors would not act; unmerge first")
    state = book.restored_tensors(name, from_older_layouts(book, name, state))
    places = book.tensors(name)
    base = book.base_tensors.values(name)
    embeddings = take_embeddings(book, state, set(places) | set(base))
    prompt = book.prompted.of(name) if book.prompted is not None and name in book.prompted.encoder else None
    wanted = places | base | ({PROMPT_KEY: prompt.stored()} if prompt is not None else {})
    skipped = _take_mismatched(state, wanted) if skip_mismatched else set()
    lenient = _untrained_biases(book, state, wanted) | book.repeated_keys(name) | skipped
    check_keys(state, wanted, lenient=lenient)
    restore_embeddings(book, embeddings)
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


def check_keys(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], lenient: set[str]) -> None:
    """Raise AdapterError for keys that state lacks or has too many, lenient ones excepted, and for other shapes."""
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
