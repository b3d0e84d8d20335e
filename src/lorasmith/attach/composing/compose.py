"""Composing adapters: by content, or within a model."""

from collections.abc import Callable, Sequence

from torch import nn

from lorasmith.attach.adapters import adapters_of
from lorasmith.attach.composing.composition import Composition, Part, checked
from lorasmith.attach.composing.ia3 import compose_ia3
from lorasmith.attach.composing.lora import compose_lora
from lorasmith.attach.content import AdapterContent
from lorasmith.attach.files import attach_content, content_of
from lorasmith.errors import AttachError

_COMPOSERS: dict[str, Callable[[Sequence[Part], Composition], AdapterContent]] = {
    "LORA": compose_lora,
    "IA3": compose_ia3,
}


def compose(parts: Sequence[Part], composition: Composition) -> AdapterContent:
    """One adapter of several of one method and one base.

    Raises AttachError for a method whose adapters have no sum, and for what composition cannot do with these.
    """
    method = str(checked(list(parts))[0].content.config.peft_type)
    if method not in _COMPOSERS:
        raise AttachError(f"adapters of {method} have no weighted sum; combine those of {' or '.join(_COMPOSERS)}")
    return _COMPOSERS[method](parts, composition)


def add_weighted(
    model: nn.Module, names: Sequence[str], weights: Sequence[float], result: str, composition: Composition
) -> None:
    """Attach to model the adapter result, composed of others of its adapters; those that act stay the same.

    Raises AttachError as compose does, for a number of weights that is not that of names, and for a name that is taken.
    """
    book = adapters_of(model)
    if len(names) != len(weights):
        raise AttachError(f"{len(names)} adapters and {len(weights)} weights; give one weight an adapter")
    for name in names:
        book.check(name)
    if result in book.configs:
        raise AttachError(f"adapter {result!r} exists already; choose another name or delete that one first")
    parts = [Part(name, content_of(book, name), weight) for name, weight in zip(names, weights)]
    before = list(book.active)
    attach_content(model, compose(parts, composition), result)
    book.activate(before)
