"""Adapters on a model that is not wrapped."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from lorasmith.attach import KEY_PREFIX, attach, shortest_names
from lorasmith.compat.peft_model import bare_model
from lorasmith.errors import AttachError
from lorasmith.methods import AdapterConfig, TargetedConfig


def inject_adapter_in_model(
    peft_config: AdapterConfig,
    model: nn.Module,
    adapter_name: str = "default",
    low_cpu_mem_usage: bool = False,
    state_dict: Mapping[str, Tensor] | None = None,
) -> Any:
    """model with the adapter attached in place; the rest is frozen.

    The modules of a state_dict, in PEFT's file keys, are adapted instead of the config's targets; its values are not
    read: load them with set_peft_model_state_dict. low_cpu_mem_usage changes nothing: no start is computed twice.
    Raises AttachError for a soft prompt, which needs a wrapper here as in PEFT.
    """
    if peft_config.is_prompt_learning:
        raise AttachError(f"{peft_config.METHOD} adapts no module of the model; use get_peft_model")
    model = bare_model(model)
    if state_dict is not None:
        peft_config = _targeting(peft_config, model, state_dict)
    attach(model, peft_config, adapter_name)
    return model


def _targeting(config: AdapterConfig, model: nn.Module, state: Mapping[str, Tensor]) -> AdapterConfig:
    """config with the modules as targets that the keys of state stand in."""
    if not isinstance(config, TargetedConfig):
        raise AttachError(f"{config.METHOD} has no target modules for a state_dict to name; leave it out")
    keys = [key.removeprefix(KEY_PREFIX) for key in state]
    modules = [path for path, _ in model.named_modules() if path]
    found = {path for path in modules for key in keys if key.startswith(f"{path}.")}
    # the innermost module of each key
    deepest = sorted(path for path in found if not any(other.startswith(f"{path}.") for other in found))
    if not deepest:
        raise AttachError(f"state_dict holds no tensor of a module of {type(model).__name__}; its keys must be PEFT's")
    return replace(config, target_modules=shortest_names(deepest, model), exclude_modules=None)
