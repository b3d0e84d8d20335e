"""An adapter without a model: its config, its tensors by PEFT's keys, the names of its classes."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from lorasmith.methods import AdapterConfig


@dataclass(frozen=True)
class AdapterContent:
    """What a folder holds of an adapter."""

    config: AdapterConfig
    state: Mapping[str, Tensor]
    class_names: tuple[str, ...] = ()
