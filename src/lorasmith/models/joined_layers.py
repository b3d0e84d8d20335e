"""Layers that read the same input, their outputs computed in one step: gate and up; q, k and v.

The step runs before the module that holds the layers calls them, and each then gives what lies ready for it, if it is
called with the same tensor. So every call and hook of a layer stays, and a model that does something else with its
layers computes as ever. On a GPU that saves reading x, and writing and adding a gradient of x, once a layer; on a CPU
it was not found to pay (docs/log.md).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from lorasmith.ops import Joinable, Part, adapted_linears, joinable

DEVICES = {"cuda"}
"""Device types on which layers are joined."""


@contextmanager
def joined(layers: Sequence[nn.Module | None], x: Tensor) -> Iterator[None]:
    """While the block runs, layers have their outputs for x ready, where all can be computed in one step."""
    made = _made(layers, x) if torch.is_grad_enabled() and x.device.type in DEVICES else []
    for layer, y in made:
        layer.make_ready(x, y)
    try:
        yield
    finally:
        for layer, _ in made:
            layer.forget_ready()


def _made(layers: Sequence[nn.Module | None], x: Tensor) -> list[tuple[Joinable, Tensor]]:
    found: list[tuple[Joinable, Part]] = []
    for layer in layers:
        if layer is None or not joinable(type(layer)):  # type: ignore[arg-type]
            return []
        able = cast(Joinable, layer)
        part = able.part(x)
        if part is None:
            return []
        found.append((able, part))
    results = adapted_linears(x, [part for _, part in found]) if len(found) > 1 else []
    return [(layer, y) for (layer, _), y in zip(found, results, strict=False)]
