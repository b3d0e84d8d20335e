"""BitFit: only the biases of the base train. Source: arXiv 2106.10199, section 3."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from lorasmith.methods.config import AdapterConfig
from lorasmith.methods.matching import matches
from lorasmith.methods.method import SelectiveMethod
from lorasmith.methods.registry import methods


@dataclass
class BitFitConfig(AdapterConfig):
    """target_modules confines the choice to the biases of these modules; None takes every bias."""

    METHOD: ClassVar[str] = "BITFIT"

    target_modules: list[str] | set[str] | str | None = None


class BitFit(SelectiveMethod[BitFitConfig]):
    """Bias-term fine-tuning."""

    config_class = BitFitConfig

    def selects(self, config: BitFitConfig, name: str, parameter: nn.Parameter) -> bool:
        module, _, tensor = name.rpartition(".")
        return tensor == "bias" and (config.target_modules is None or matches(module, config.target_modules))


methods.add("bitfit", BitFit())
