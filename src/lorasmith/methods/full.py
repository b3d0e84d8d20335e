"""Full fine-tuning: whole tensors of the base train, all of them or those of named modules (a head, last layers).

The baseline that adapters are measured against. Quantized weights cannot train and stay frozen. The originals are
kept beside the trained values, so that the adapter can be switched off; that costs the memory of both.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from lorasmith.methods.config import AdapterConfig
from lorasmith.methods.matching import matches
from lorasmith.methods.method import SelectiveMethod
from lorasmith.methods.registry import methods


@dataclass
class FullConfig(AdapterConfig):
    """target_modules confines the training to these modules, whole with what is in them; None trains everything."""

    METHOD: ClassVar[str] = "FULL"

    target_modules: list[str] | set[str] | str | None = None


class Full(SelectiveMethod[FullConfig]):
    """Training of whole tensors."""

    config_class = FullConfig

    def selects(self, config: FullConfig, name: str, parameter: nn.Parameter) -> bool:
        if config.target_modules is None:
            return True
        parts = name.split(".")[:-1]
        return any(matches(".".join(parts[: depth + 1]), config.target_modules) for depth in range(len(parts)))


methods.add("full", Full())
