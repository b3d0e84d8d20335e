"""Activations that are made again in the backward instead of kept (gradient checkpointing)."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedModel

from lorasmith.errors import ModelError

# transformers renamed the methods after 5.17 and warns of the old names
_RENAMED = "activation_checkpointing_enable" in vars(PreTrainedModel)


def checkpoint_activations_(model: nn.Module) -> None:
    """Keep only each layer's input and recompute the rest, by non-reentrant checkpointing.

    transformers then makes the embeddings' output require a gradient, which reentrant checkpointing needed and which
    would drag gradients through all layers below the lowest trained one; that is taken back here.
    Raises ModelError for a model that cannot.
    """
    if not isinstance(model, PreTrainedModel) or not model.supports_gradient_checkpointing:
        raise ModelError(
            f"{type(model).__name__} does not support gradient checkpointing; set gradient_checkpointing: false"
        )
    if _RENAMED:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.disable_input_require_grads()


@contextmanager
def recomputed(model: nn.Module) -> Iterator[None]:
    """checkpoint_activations_ while the block runs, and not after it."""
    checkpoint_activations_(model)
    assert isinstance(model, PreTrainedModel)
    try:
        yield
    finally:
        if _RENAMED:
            model.activation_checkpointing_disable()
        else:
            model.gradient_checkpointing_disable()
