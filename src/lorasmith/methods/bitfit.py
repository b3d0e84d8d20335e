"""BitFit: only the biases of the base train. Source: arXiv 2106.10199, section 3."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from lorasmith.methods.config import TargetedConfig
from lorasmith.methods.method import SelectiveMethod
from lorasmith.methods.registry import methods


@dataclass
class BitFitConfig(TargetedConfig):
    """target_modules confines the choice to the biases in these modules; None takes every bias."""

    METHOD: ClassVar[str] = "BITFIT"


class BitFit(SelectiveMethod[BitFitConfig]):
    """Bias-term fine-tuning."""

    config_class = BitFitConfig

    def selects(self, config: BitFitConfig, name: str, parameter: nn.Parameter) -> bool:
        return name.rpartition(".")[2] == "bias"


methods.add("bitfit", BitFit())
