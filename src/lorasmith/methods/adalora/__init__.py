"""AdaLoRA: y = x W^T + b + s (drop(x) (E A)^T) B^T: an SVD whose ranks are shared out in training.

A [rank, in], E [rank, 1] and B [out, rank] train; rows of E whose triplet matters least are set to zero until the
average rank is target_r. Source: arXiv 2303.10512, section 3.
"""

from collections.abc import Sequence

from torch import nn

from lorasmith.errors import AttachError
from lorasmith.methods.adalora.allocation import RankAllocation
from lorasmith.methods.adalora.config import AdaLoraConfig
from lorasmith.methods.adalora.site import AdaLoraConv, AdaLoraLinear, AdaLoraSite
from lorasmith.methods.layer import LayerSpec
from lorasmith.methods.method import SiteMethod
from lorasmith.methods.registry import methods
from lorasmith.methods.site import Site, adapter_dtype
from lorasmith.methods.training_part import TrainingPart
from lorasmith.models.families import ADALORA_TARGETS

__all__ = ["AdaLoraConfig"]


class AdaLora(SiteMethod[AdaLoraConfig]):
    """Adaptive low-rank adaptation of linear layers and convolutions."""

    config_class = AdaLoraConfig
    recipe_targets = "all-linear"

    def site(self, config: AdaLoraConfig, layer: LayerSpec, float32: bool, shared: nn.Module | None) -> Site:
        if layer.kind == "embedding":
            raise AttachError(f"{layer.path}: AdaLoRA serves linear layers and convolutions; exclude this module")
        shape = AdaLoraLinear if layer.conv is None else AdaLoraConv
        return shape(config, layer, adapter_dtype(layer, float32))

    def training_part(self, config: AdaLoraConfig, sites: Sequence[tuple[str, Site]]) -> TrainingPart:
        return RankAllocation(config, {path: site for path, site in sites if isinstance(site, AdaLoraSite)})

    def default_targets(self, model_type: str) -> list[str] | str | None:
        return ADALORA_TARGETS.get(model_type)

    def biases(self, config: AdaLoraConfig) -> str:
        return config.bias


methods.add("adalora", AdaLora())
