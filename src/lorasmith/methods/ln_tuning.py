"""Layer-norm tuning: the norms of the base train whole. Source: arXiv 2312.11420, section 3."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from lorasmith.methods.config import TargetedConfig
from lorasmith.methods.method import SelectiveMethod
from lorasmith.methods.registry import methods
from lorasmith.models.families import LN_TARGETS


@dataclass
class LNTuningConfig(TargetedConfig):
    """PEFT's fields; target_modules None takes PEFT's norms for the model type, and every norm where PEFT has none."""

    METHOD: ClassVar[str] = "LN_TUNING"


class LNTuning(SelectiveMethod[LNTuningConfig]):
    """Training of norms."""

    config_class = LNTuningConfig
    infix = "ln_tuning_layers."

    def default_targets(self, model_type: str) -> list[str] | str | None:
        return LN_TARGETS.get(model_type, "norms")

    def selects(self, config: LNTuningConfig, name: str, parameter: nn.Parameter) -> bool:
        return True


methods.add("ln_tuning", LNTuning())
