"""PEFT's functions for EVA: `initialize_lora_eva_weights` and `get_eva_state_dict`."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from lorasmith.attach import adapters_of, attach
from lorasmith.attach.explained_variance import InputWatch, Rows, begin_at_, token_rows
from lorasmith.compat.batches import moved
from lorasmith.compat.peft_model import PeftModel, bare_model
from lorasmith.errors import AttachError
from lorasmith.methods.inits import EvaConfig
from lorasmith.methods.lora import LoraConfig

log = logging.getLogger(__name__)

_PREFIX = "base_model.model."
# PEFT goes round for ever
_MOST_PASSES = 50

Forward = Callable[[Any, Any], Any]
PrepareModelInputs = Callable[[Any, LoraConfig], Any]
PrepareLayerInputs = Callable[[Tensor, Any, str], Tensor]


def get_eva_state_dict(
    model: nn.Module,
    dataloader: Iterable[Any],
    peft_config: LoraConfig | None = None,
    forward_fn: Forward | None = None,
    prepare_model_inputs_fn: PrepareModelInputs | None = None,
    prepare_layer_inputs_fn: PrepareLayerInputs | None = None,
    adapter_name: str = "default",
    gather_distributed_inputs: bool = True,
    show_progress_bar: bool = True,
) -> dict[str, Tensor]:
    """A [rank, in_features] of every linear layer by its name in model, from the batches of dataloader.

    They are gone through until the directions stay where they are. Without functions of the caller's, a batch is a
    mapping that the model is called with, and positions of padding or without a label do not count;
    prepare_layer_inputs_fn gets a layer's input, what prepare_model_inputs_fn made of the batch, and the layer's name.
    model is a PeftModel whose adapter has init_lora_weights="eva", or a bare one with such a peft_config.
    """
    base = bare_model(model)
    book = adapters_of(base)
    wrapped = isinstance(model, PeftModel)
    if not wrapped:
        if peft_config is None:
            raise AttachError("peft_config=None: a model without adapters needs the config whose layers to look at")
        attach(base, peft_config, adapter_name)
    try:
        config = book.configs[adapter_name]
        assert isinstance(config, LoraConfig)
        watch = InputWatch(book, adapter_name)
        select = _selector(config, watch.settings, prepare_model_inputs_fn, prepare_layer_inputs_fn)
        run = forward_fn or (lambda model, inputs: model(**inputs))
        batches = (moved(batch, base) for batch in _rounds(dataloader, watch))
        if not watch.run(batches, lambda inputs: run(model, inputs), select):
            log.warning("EVA: after %d batches directions still turn; those of the last one are taken", watch.batches)
        prefix = _PREFIX if wrapped else ""
        return {f"{prefix}{path}": a_RI for path, a_RI in watch.directions().items()}
    finally:
        if not wrapped:
            book.remove(adapter_name)


def initialize_lora_eva_weights(
    model: PeftModel,
    dataloader: Iterable[Any] | None = None,
    eva_state_dict: Mapping[str, Tensor] | None = None,
    forward_fn: Forward | None = None,
    prepare_model_inputs_fn: PrepareModelInputs | None = None,
    prepare_layer_inputs_fn: PrepareLayerInputs | None = None,
    adapter_name: str = "default",
    gather_distributed_inputs: bool = True,
    show_progress_bar: bool = True,
) -> None:
    """Let the adapter begin at eva_state_dict, or at what get_eva_state_dict finds in dataloader; ranks follow."""
    if eva_state_dict is None:
        if dataloader is None:
            raise AttachError("dataloader=None and eva_state_dict=None: give one of them")
        functions = (forward_fn, prepare_model_inputs_fn, prepare_layer_inputs_fn)
        eva_state_dict = get_eva_state_dict(model, dataloader, None, *functions, adapter_name)
    directions = {name.removeprefix(_PREFIX): a_RI for name, a_RI in eva_state_dict.items()}
    begin_at_(adapters_of(bare_model(model)), adapter_name, directions)


def _selector(
    config: LoraConfig,
    settings: EvaConfig,
    prepare_model_inputs: PrepareModelInputs | None,
    prepare_layer_inputs: PrepareLayerInputs | None,
) -> Callable[[Any], Rows]:
    def select(inputs: Any) -> Rows:
        if prepare_layer_inputs is None:
            return token_rows(inputs, settings)
        seen = inputs if prepare_model_inputs is None else prepare_model_inputs(inputs, config)
        return lambda x, path: prepare_layer_inputs(x, seen, path)

    return select


def _rounds(dataloader: Iterable[Any], watch: InputWatch) -> Iterator[Any]:
    for number in range(_MOST_PASSES):
        empty = True
        for batch in dataloader:
            empty = False
            yield batch
        if empty and not number:
            raise AttachError("the dataloader is empty; EVA needs batches of the data to train on")
        if not watch.seen_enough:
            # the same positions again would only seem to be more
            return
