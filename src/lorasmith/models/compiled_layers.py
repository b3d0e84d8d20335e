"""The repeated layers of a transformers model as compiled graphs (torch.compile) while a block runs.

Layers, not the whole model: layers that are alike share one graph, so that compiling takes as long for eighty as for
one, and what depends on values (the head's loss counts the rows that have a label) stays outside. A graph may not
break: what the compiler cannot see through is an error, never a slow path.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException
from transformers.modeling_layers import GradientCheckpointingLayer

from lorasmith.errors import ModelError, reason

Compile = Literal["auto"] | bool
"""Whether a run compiles: as told, or where that is known to pay."""

# types of devices on which compiling was measured to pay
_PAYS: frozenset[str] = frozenset()

# a graph each for kinds of layers, training and evaluation, fixed and changing lengths; torch allows 8
_MOST_GRAPHS = 64


def pays(wanted: Compile, device: torch.device) -> bool:
    """Whether to compile for device. auto is no on all: a CPU's products gain nothing, a GPU's are unmeasured."""
    return device.type in _PAYS if wanted == "auto" else wanted


def repeated_layers(model: nn.Module) -> list[nn.Module]:
    """The layers that transformers repeats, the outermost where they stand in one another."""
    found: list[tuple[str, nn.Module]] = []
    for path, module in model.named_modules():
        inside = any(path.startswith(f"{outer}.") for outer, _ in found)
        if isinstance(module, GradientCheckpointingLayer) and not inside:
            found.append((path, module))
    return [layer for _, layer in found]


@contextmanager
def compiled_layers(model: nn.Module, backend: str | Callable[..., Any] = "inductor") -> Iterator[list[nn.Module]]:
    """Compile the repeated layers of model, when first called, for as long as the block runs; yields them.

    A layer that was compiled before stays as it is. Raises ModelError for a model without such layers, and, from
    inside the block, where the compiler fails.
    """
    layers = [layer for layer in repeated_layers(model) if layer._compiled_call_impl is None]
    if not layers:
        raise ModelError(f"{type(model).__name__} has no layers to compile one by one; set training.compile: false")
    for layer in layers:
        layer.compile(backend=backend, fullgraph=True)
    try:
        with torch._dynamo.config.patch(recompile_limit=_MOST_GRAPHS):
            yield layers
    except TorchDynamoException as error:
        raise ModelError(
            f"{type(model).__name__} cannot be compiled ({reason(error)}); set training.compile: false"
        ) from error
    finally:
        for layer in layers:
            layer._compiled_call_impl = None
