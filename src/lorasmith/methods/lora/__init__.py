"""LoRA: y = x W^T + b + s drop(x) A^T B^T with A [rank, in], B [out, rank].

The scaling s is alpha / rank, or alpha / sqrt(rank) with use_rslora. Source: LoRA, arXiv 2106.09685, section 4.1;
rank-stabilised scaling, arXiv 2312.03732.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from lorasmith.errors import AttachError
from lorasmith.methods.config import TargetedConfig
from lorasmith.methods.layer import LayerSpec
from lorasmith.methods.lora.config import LoraConfig
from lorasmith.methods.lora.conv import LoraConv
from lorasmith.methods.lora.dora import DoraSite
from lorasmith.methods.lora.embedding import LoraEmbedding
from lorasmith.methods.lora.experts import LoraExperts
from lorasmith.methods.lora.linear import LoraLinear
from lorasmith.methods.lora.pooled import LoraPooled
from lorasmith.methods.lora.shifted import LoraShifted
from lorasmith.methods.lora.site import LoraSite
from lorasmith.methods.lora.tied import LoraTiedHead
from lorasmith.methods.method import SiteMethod
from lorasmith.methods.registry import methods
from lorasmith.methods.site import Site, adapter_dtype
from lorasmith.methods.trainable_tokens import TrainableTokens, TrainableTokensConfig
from lorasmith.models.families import LORA_TARGETS

__all__ = ["LoraConfig", "LoraSite"]


# rows of the embedding that train beside LoRA, one step deeper in PEFT's files than alone
_TOKENS = TrainableTokens(inside="token_adapter.")


class Lora(SiteMethod[LoraConfig]):
    """Low-rank adaptation of linear layers, embeddings and convolutions; use_dora and use_qalora change its form."""

    config_class = LoraConfig
    recipe_targets = "all-linear"

    def site(self, config: LoraConfig, layer: LayerSpec, float32: bool, shared: nn.Module | None) -> Site:
        dtype = adapter_dtype(layer, float32)
        if config.use_qalora and layer.kind != "linear":
            raise AttachError(f"{layer.path}: use_qalora serves linear layers only; leave this module out")
        if layer.kind == "parameter":
            return LoraExperts(config, layer, dtype)
        linear = LoraPooled if config.use_qalora else LoraShifted if config.start().shifts else LoraLinear
        shapes: dict[str, type[LoraSite]] = {"linear": linear, "embedding": LoraEmbedding, "conv": LoraConv}
        update = shapes[layer.kind](config, layer, dtype)  # type: ignore[call-arg]
        return DoraSite(update, dtype) if config.use_dora else update

    def default_targets(self, model_type: str) -> list[str] | str | None:
        return LORA_TARGETS.get(model_type)

    def refuses_parameters(self, config: LoraConfig) -> str | None:
        return config.refuses_parameters()

    def exported(self, config: LoraConfig) -> LoraConfig:
        """The config of the plain LoRA of twice the rank and the same scaling that an adapter with a start is."""
        if not config.start().shifts:
            return config
        grown = math.sqrt(2) if config.use_rslora else 2
        return replace(
            config,
            init_lora_weights=True,
            r=2 * config.r,
            lora_alpha=grown * config.lora_alpha,
            rank_pattern={path: 2 * rank for path, rank in config.rank_pattern.items()},
            alpha_pattern={path: grown * alpha for path, alpha in config.alpha_pattern.items()},
        )

    def ties(self, config: LoraConfig) -> bool:
        return config.ensures_tying

    def tied_site(self, config: LoraConfig, site: Site, layer: LayerSpec) -> Site:
        if not isinstance(site, LoraEmbedding) or layer.kind != "linear":
            raise AttachError(f"{layer.path} is tied to {site.layer.path}, and LoRA ties a head to an embedding only")
        return LoraTiedHead(config, layer, site)

    def companions(self, config: LoraConfig) -> Sequence[tuple[SiteMethod[Any], TargetedConfig]]:
        chosen = config.trainable_token_indices
        if not chosen:
            return []
        targets = list(chosen) if isinstance(chosen, dict) else None
        return [(_TOKENS, TrainableTokensConfig(token_indices=chosen, target_modules=targets))]

    def biases(self, config: LoraConfig) -> str:
        return config.bias


methods.add("lora", Lora())
