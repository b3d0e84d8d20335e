"""Configs by PEFT's names, and an adapter's tensors by PEFT's functions."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lorasmith.attach import adapter_state, load_adapter_state, read_adapter_tensors
from lorasmith.compat.adapter_folder import adapter_folder
from lorasmith.compat.load_result import LoadResult
from lorasmith.compat.peft_model import bare_model
from lorasmith.compat.renaming import renamed
from lorasmith.methods import AdapterConfig, config_from_fields, read_config


class PeftConfig:
    """Reads the config of any adapter; each method's own class holds the fields."""

    @staticmethod
    def from_pretrained(model_id: str | Path, **hub: Any) -> AdapterConfig:
        """The config in a folder or hub repository, as the class of its method."""
        return read_config(adapter_folder(model_id, **hub))


def get_peft_config(config_dict: dict[str, Any]) -> AdapterConfig:
    """The config of the method that config_dict["peft_type"] names."""
    return config_from_fields(config_dict)


def load_peft_weights(
    model_id: str | Path, device: str | None = None, key_mapping: Mapping[str, str] | None = None, **hub: Any
) -> dict[str, Tensor]:
    """The tensors in an adapter's folder or hub repository by their keys, on device (default: the CPU).

    key_mapping renames keys, without the prefix that they all have: the first expression that is found is replaced.
    """
    state = read_adapter_tensors(adapter_folder(model_id, **hub))
    return {key: value.to(device or "cpu") for key, value in renamed(state, key_mapping).items()}


def get_peft_model_state_dict(
    model: nn.Module,
    state_dict: Mapping[str, Tensor] | None = None,
    adapter_name: str = "default",
    save_embedding_layers: bool | str = "auto",
    **unused: Any,
) -> dict[str, Tensor]:
    """The adapter's tensors in PEFT's file keys. state_dict is not needed: tensors are found by identity."""
    return adapter_state(bare_model(model), adapter_name, save_embedding_layers)  # type: ignore[arg-type]


def set_peft_model_state_dict(
    model: nn.Module,
    peft_model_state_dict: Mapping[str, Tensor],
    adapter_name: str = "default",
    ignore_mismatched_sizes: bool = False,
    low_cpu_mem_usage: bool = False,
) -> LoadResult:
    """Load tensors with PEFT's file keys; AdapterError lists what is missing or unexpected.

    ignore_mismatched_sizes leaves tensors of another shape as they are, with a warning that names them. Returns what
    PEFT's users ask for: no key is missing or unexpected.
    """
    load_adapter_state(bare_model(model), peft_model_state_dict, adapter_name, skip_mismatched=ignore_mismatched_sizes)
    return LoadResult([], [])
