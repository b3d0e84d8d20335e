"""Activations that are made again in the backward instead of kept (gradient checkpointing)."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedModel

from lorasmith.errors import ModelError
from lorasmith.models.offloaded_inputs import OffloadedInputs, offloaded_inputs

# where transformers puts the function that checkpoints a layer
_FUNCTION = "_gradient_checkpointing_func"
# transformers renamed the methods after 5.17 and warns of the old names
_RENAMED = "activation_checkpointing_enable" in vars(PreTrainedModel)


def checkpoint_activations_(model: nn.Module, inputs: OffloadedInputs | None = None) -> None:
    """Keep only each layer's input and recompute the rest, by non-reentrant checkpointing.

    inputs, where it is given, keeps the layers' inputs in host memory.

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
    if inputs is not None:
        _offload_(model, inputs)


def _offload_(model: nn.Module, inputs: OffloadedInputs) -> None:
    """Put inputs around the function by which each layer of model is checkpointed."""
    layers = [module for module in model.modules() if _FUNCTION in vars(module)]
    if not layers:
        raise ModelError(
            f"{type(model).__name__} checkpoints its layers in a way of its own; set offload_checkpoints: false"
        )
    for layer in layers:
        setattr(layer, _FUNCTION, inputs.around(getattr(layer, _FUNCTION)))


@contextmanager
def recomputing(model: nn.Module, *, checkpointing: bool, offload: bool) -> Iterator[None]:
    """While the block runs, layers of model are recomputed where checkpointing says so, their inputs in host memory.

    Raises DeviceError for offload on a device whose tensors lie in host memory.
    """
    if not checkpointing:
        yield
        return
    inputs = offloaded_inputs(next(model.parameters()).device) if offload else None
    with recomputed(model, inputs):
        yield


@contextmanager
def recomputed(model: nn.Module, inputs: OffloadedInputs | None = None) -> Iterator[None]:
    """checkpoint_activations_ while the block runs, and not after it."""
    checkpoint_activations_(model, inputs)
    assert isinstance(model, PreTrainedModel)
    try:
        yield
    finally:
        if _RENAMED:
            model.activation_checkpointing_disable()
        else:
            model.gradient_checkpointing_disable()
