"""What stands beside the updates in adapters that are combined: modules trained whole, and which modules are meant."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lorasmith.attach.composing.composition import Part
from lorasmith.errors import AttachError
from lorasmith.methods import TargetedConfig

_EMBEDDING = ".base_layer.weight"


def whole_tensors(parts: Sequence[Part], tensors: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors, by key, that one of the adapters trains whole and the result takes over.

    Raises AttachError where several adapters have a tensor and differ in it: a module trained whole has no weighted sum
    without the one that it came from.
    """
    found: dict[str, tuple[str, Tensor]] = {}
    for part, own in zip(parts, tensors):
        for key, value in own.items():
            first = found.setdefault(key, (part.name, value))
            if not torch.equal(first[1], value):
                raise AttachError(
                    f"{first[0]} and {part.name} both train {key} whole, and differently; "
                    "combine adapters of which one at most has it in modules_to_save"
                )
    return {key: value for key, (_, value) in found.items()}


def is_whole(part: Part, path: str) -> bool:
    """Whether the adapter may hold the tensor at path (module and tensor) as it is: a whole module, or an embedding."""
    modules = part.content.config.modules_to_save or []
    return path.endswith(_EMBEDDING) or any(f".{name}." in f".{path}" for name in modules)


def merged_modules_to_save(parts: Sequence[Part]) -> list[str] | None:
    """modules_to_save of the result."""
    names = [name for part in parts for name in part.content.config.modules_to_save or []]
    return list(dict.fromkeys(names)) or None


def merged_names(values: Iterable[Any], paths: Iterable[str], configs: Iterable[TargetedConfig]) -> list[str]:
    """Names that mean exactly the modules at paths, from each config's own: their union, or the whole paths.

    An expression, an exclusion and a choice of layers confine one adapter's names, so that a union would mean more.
    """
    lists = list(values)
    confined = any(config.exclude_modules or config.layer_numbers is not None for config in configs)
    if confined or not all(isinstance(value, list | set | tuple) for value in lists):
        return sorted(paths)
    return sorted({name for value in lists for name in value})


def class_names(parts: Sequence[Part]) -> tuple[str, ...]:
    """The names of the classes of the first adapter that has any: a classifier's head comes from one alone."""
    return next((part.content.class_names for part in parts if part.content.class_names), ())
