"""Full fine-tuning: whole tensors of the base train, all of them or those of named modules (a head, last layers).

The baseline that adapters are measured against. Quantized weights cannot train and stay frozen. The originals are
kept beside the trained values, so that the adapter can be switched off; that costs the memory of both.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from lorasmith.methods.config import TargetedConfig
from lorasmith.methods.method import SelectiveMethod
from lorasmith.methods.registry import methods


@dataclass
class FullConfig(TargetedConfig):
    """target_modules confines the training to these modules, whole with what is in them; None trains everything.

    So layers="last-2" alone trains the last two layers whole, and target_modules="head" or "embeddings" just these.
    """

    METHOD: ClassVar[str] = "FULL"


class Full(SelectiveMethod[FullConfig]):
    """Training of whole tensors."""

    config_class = FullConfig

    def selects(self, config: FullConfig, name: str, parameter: nn.Parameter) -> bool:
        return True


methods.add("full", Full())
