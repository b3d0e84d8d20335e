"""`adapter_names`: an adapter for each row of one batch, an argument of a PeftModel's forward and generate."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lorasmith.attach import adapters_of
from lorasmith.errors import AttachError

# what a batch comes in, in the order of asking
_INPUTS = ("input_ids", "inputs", "inputs_embeds", "input_features", "input_values", "pixel_values")


@contextmanager
def named_rows(
    model: nn.Module, names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any], repeats: int = 1
) -> Iterator[None]:
    """For one call of model with args and kwargs each row is served by the adapter that names have for it.

    Raises AttachError, as Adapters.by_rows does, and for another number of names than the batch has rows.
    """
    batch = next((kwargs[name] for name in _INPUTS if isinstance(kwargs.get(name), Tensor)), args[0] if args else None)
    if isinstance(batch, Tensor) and not isinstance(names, str) and len(names) != batch.shape[0]:
        raise AttachError(f"adapter_names has {len(names)} names for {batch.shape[0]} rows; give one for each row")
    if model.training and torch.is_grad_enabled() and any(map(_recomputes, model.modules())):
        raise AttachError(
            "adapter_names with gradient checkpointing: layers are computed again in the backward, when the names are "
            "gone; run forward and backward inside `with model.adapters.by_rows(names):`"
        )
    with adapters_of(model).by_rows(names, repeats=repeats):
        yield


def most_repeats(model: Any, kwargs: Mapping[str, Any]) -> int:
    """How often generate, called with kwargs, repeats each row: beams, or sequences that are returned."""
    config = kwargs.get("generation_config") or model.generation_config
    asked = [kwargs.get(name) or getattr(config, name, None) or 1 for name in ("num_beams", "num_return_sequences")]
    return max(asked)


def _recomputes(module: nn.Module) -> bool:
    return bool(getattr(module, "gradient_checkpointing", False))
