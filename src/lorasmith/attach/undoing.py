"""What an attempt did to a model, undone where it failed."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from lorasmith.attach.adapters import Adapters
from lorasmith.attach.merging import merge_in_place
from lorasmith.models.modes import note_trainability


@contextmanager
def undone_on_error(book: Adapters) -> Iterator[None]:
    """If the block raises, the model and its book are as they were: the same modules, tensors, hooks, sizes and flags.

    The block begins with every merge undone and the base's own tensors in place. Values that it writes into other
    tensors of the model are no part of what is put back: whoever writes checks first.
    """
    merged = next((holder.merged for _, holder in book.adapted() if holder.merged), [])
    # undone from the last to the first
    with ExitStack() as undo:
        undo.callback(note_trainability(book.model))
        undo.callback(_merge_again, book, merged)
        undo.callback(book.enable, book.enabled)
        book.unmerge()
        book.base_tensors.place([])
        for parameter in book.model.parameters():
            undo.callback(_give_storage_back, parameter, parameter.data)
        for thing in _things(book):
            undo.callback(_put_back, thing, dict(thing.__dict__), _copies(thing))
        # first: the originals go back as long as the book knows them
        undo.callback(lambda: book.base_tensors.place([]))
        yield
        undo.pop_all()


def _things(book: Adapters) -> list[Any]:
    """Everything whose attributes attaching and loading change."""
    found: list[Any] = [*book.model.modules(), book, book.base_tensors, book.class_names, book.prompted]
    config = getattr(book.model, "config", None)
    if isinstance(config, PreTrainedConfig):
        found += [config, config.get_text_config()]
    return list({id(thing): thing for thing in found if thing is not None}.values())


def _copies(thing: Any) -> list[tuple[dict[Any, Any], dict[Any, Any]]]:
    """The dicts that thing holds, submodules and hooks among them, each with a copy."""
    return [(value, dict(value)) for value in thing.__dict__.values() if isinstance(value, dict)]


def _put_back(thing: Any, attributes: dict[str, Any], copies: list[tuple[dict[Any, Any], dict[Any, Any]]]) -> None:
    thing.__dict__.clear()
    thing.__dict__.update(attributes)
    # in place: the handles of hooks know the very dict that they are in
    for held, copy in copies:
        held.clear()
        held.update(copy)


def _give_storage_back(parameter: nn.Parameter, data: Any) -> None:
    # transformers resizes an embedding by giving its parameter another storage
    if parameter.data_ptr() != data.data_ptr() or parameter.shape != data.shape:
        parameter.data = data


def _merge_again(book: Adapters, merged: list[str]) -> None:
    if merged:
        merge_in_place(book.model, merged)
