"""A call of generate: whether its steps can be recorded, and the arguments that it then takes."""

import copy
from collections.abc import Mapping
from typing import Any

from transformers.generation import GenerationMode

from lorasmith.decoding.recorder import NotRecordable
from lorasmith.models.quiet import quiet_transformers

# one token a row and a step
_MODES = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE, GenerationMode.BEAM_SEARCH, GenerationMode.BEAM_SAMPLE)


def check(model: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Raise NotRecordable unless model.generate(*args, **kwargs) takes steps of one form on a cache of its choice."""
    if model.config.is_encoder_decoder or not model._can_compile_fullgraph:
        raise NotRecordable(f"{type(model).__name__} has no static cache that its steps could keep to")
    if len(args) > 1 or kwargs.get("custom_generate") is not None:
        raise NotRecordable("generate was given settings by position, or a way of its own")
    asked = copy.deepcopy(kwargs.get("generation_config") or model.generation_config)
    # generate says what is wrong with its settings itself
    with quiet_transformers():
        asked.update(**{name: value for name, value in kwargs.items() if name != "generation_config"})
    mode = asked.get_generation_mode(kwargs.get("assistant_model"))
    if mode not in _MODES:
        raise NotRecordable(f"{mode.value} takes steps of changing lengths")
    # what an older Gemma's settings call hybrid is the default
    if asked.use_cache is False or asked.cache_implementation not in (None, "static", "hybrid"):
        raise NotRecordable("generate was told which cache to use, or none")


def settled(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments with a static cache, where the caller brings none, and without transformers' own compiling."""
    changes: dict[str, Any] = {"disable_compile": True}
    if kwargs.get("past_key_values") is None:
        changes["cache_implementation"] = "static"
    if kwargs.get("generation_config") is None:
        return kwargs | changes
    config = copy.deepcopy(kwargs["generation_config"])
    config.update(**changes)
    return kwargs | {"generation_config": config}
