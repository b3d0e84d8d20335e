"""LoRA: y = x W^T + b + s drop(x) A^T B^T with A [rank, in], B [out, rank].

The scaling s is alpha / rank, or alpha / sqrt(rank) with use_rslora. Source: LoRA, arXiv 2106.09685, section 4.1;
rank-stabilised scaling, arXiv 2312.03732.
"""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from lorasmith.errors import AttachError
from lorasmith.methods.config import LayeredConfig
from lorasmith.methods.layer import LayerSpec
from lorasmith.methods.matching import compiled
from lorasmith.methods.method import SiteMethod
from lorasmith.methods.registry import methods
from lorasmith.methods.site import DenseWeight, Site, Vector, adapter_dtype
from lorasmith.models.families import LORA_TARGETS
from lorasmith.ops import LowRank

Initialization = bool | Literal["gaussian"]

# PEFT's fields for variants that this version does not have: accepted at these values, refused at any other
_VARIANTS: dict[str, tuple[Any, ...]] = {
    "layer_replication": (None,),
    "use_dora": (False,),
    "use_qalora": (False,),
    "use_bdlora": (None, False),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, [], {}),
    "alora_invocation_tokens": (None, []),
    "loftq_config": (None, {}),
    "eva_config": (None,),
    "corda_config": (None,),
    "lora_ga_config": (None,),
    "velora_config": (None,),
    "monteclora_config": (None,),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "megatron_config": (None,),
}


@dataclass
class LoraConfig(LayeredConfig):
    """PEFT's fields and defaults. rank_pattern and alpha_pattern map a module name or expression to its own value.

    bias trains biases of the base too: "none", "all", or "lora_only" for the adapted modules. Raises AttachError for a
    rank below 1, a dropout outside 0 to 1, and for variants that are not built.
    """

    METHOD: ClassVar[str] = "LORA"

    r: int = 8
    lora_alpha: float = 8
    lora_dropout: float = 0.0
    fan_in_fan_out: bool = False
    bias: Literal["none", "all", "lora_only"] = "none"
    use_rslora: bool = False
    init_lora_weights: Initialization = True
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    lora_bias: bool = False
    layer_replication: list[tuple[int, int]] | None = None
    use_dora: bool = False
    use_qalora: bool = False
    qalora_group_size: int = 16
    use_bdlora: Any = None
    target_parameters: list[str] | None = None
    trainable_token_indices: Any = None
    alora_invocation_tokens: list[int] | None = None
    loftq_config: dict[str, Any] = field(default_factory=dict)
    eva_config: Any = None
    corda_config: Any = None
    lora_ga_config: Any = None
    velora_config: Any = None
    monteclora_config: Any = None
    arrow_config: Any = None
    kasa_config: Any = None
    megatron_config: dict[str, Any] | None = None
    megatron_core: str | None = "megatron.core"
    ensure_weight_tying: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if min([self.r, *self.rank_pattern.values()]) < 1:
            raise AttachError(f"r={self.r}, rank_pattern={self.rank_pattern}: a rank must be at least 1")
        if not 0 <= self.lora_dropout < 1:
            raise AttachError(f"lora_dropout={self.lora_dropout} must lie in [0, 1)")
        if self.bias not in ("none", "all", "lora_only"):
            raise AttachError(f"bias={self.bias!r} is not one of none, all, lora_only")
        if self.init_lora_weights not in (True, False, "gaussian"):
            raise AttachError(f"init_lora_weights={self.init_lora_weights!r} is not one of True, False, 'gaussian'")
        for name, accepted in _VARIANTS.items():
            if getattr(self, name) not in accepted:
                raise AttachError(f"{name}={getattr(self, name)!r} is not supported yet; leave it at {accepted[0]!r}")

    def rank_of(self, path: str) -> int:
        """Rank of the module at path."""
        return _patterned(self.rank_pattern, path, self.r)

    def alpha_of(self, path: str) -> float:
        """Alpha of the module at path."""
        return _patterned(self.alpha_pattern, path, self.lora_alpha)

    def scaling_of(self, path: str) -> float:
        """The factor s of the module at path."""
        rank = self.rank_of(path)
        return self.alpha_of(path) / (math.sqrt(rank) if self.use_rslora else rank)


def _patterned(patterns: dict[str, Any], path: str, default: Any) -> Any:
    # the first pattern that is the whole path or a dotted end of it, as PEFT matches
    for pattern, value in patterns.items():
        if compiled(rf"(.*\.)?({pattern})$", "rank_pattern or alpha_pattern").match(path):
            return value
    return default


class LoraSite(Site):
    """What the three shapes of LoRA share; A and B are child modules named as in PEFT."""

    def __init__(self, config: LoraConfig, layer: LayerSpec) -> None:
        super().__init__(layer)
        self.rank = config.rank_of(layer.path)
        self.scaling = config.scaling_of(layer.path)
        self.lora_dropout = nn.Dropout(config.lora_dropout) if config.lora_dropout else nn.Identity()

    def describe(self) -> str:
        return f"LoRA, rank {self.rank}, scaling {self.scaling:g}"

    def refuses_merge(self) -> str | None:
        grouped = self.layer.conv is not None and self.layer.conv.groups > 1
        return "LoRA on a convolution with groups is no sum of kernels" if grouped else None

    def delta_bias(self, bias: Tensor | None) -> Tensor | None:
        b = self._modules.get("lora_B")
        extra = None if b is None else b._parameters["bias"]
        return None if extra is None else self.scaling * extra.detach()


class LoraLinear(LoraSite):
    """LoRA beside a linear layer."""

    def __init__(self, config: LoraConfig, layer: LayerSpec, dtype: torch.dtype) -> None:
        super().__init__(config, layer)
        options = {"device": layer.device, "dtype": dtype}
        self.lora_A = nn.Linear(layer.in_features, self.rank, bias=False, **options)
        self.lora_B = nn.Linear(self.rank, layer.out_features, bias=config.lora_bias, **options)
        _initialize(self.lora_A, self.lora_B, config.init_lora_weights, self.rank)

    def after(self, x: Tensor, y: Tensor, weight: DenseWeight) -> Tensor:
        # the factors may be f32 beside a 16-bit x; the scaling goes into the small product
        h = functional.linear(self.lora_dropout(x), self.lora_A.weight.to(x.dtype)) * self.scaling
        bias = None if self.lora_B.bias is None else self.lora_B.bias.to(x.dtype) * self.scaling
        return y + functional.linear(h, self.lora_B.weight.to(x.dtype), bias).to(y.dtype)

    def low_rank(self) -> LowRank | None:
        if self.lora_B.bias is not None:
            return None
        dropout = self.lora_dropout.p if isinstance(self.lora_dropout, nn.Dropout) and self.lora_dropout.training else 0
        return LowRank(self.lora_A.weight, self.lora_B.weight, self.scaling, dropout)

    def delta(self, weight: Tensor) -> Tensor:
        product = self.lora_B.weight.detach().float() @ self.lora_A.weight.detach().float()
        return (self.scaling * product).to(weight.dtype)


class LoraEmbedding(LoraSite):
    """LoRA beside an embedding: A [rank, rows], B [width, rank], no dropout."""

    def __init__(self, config: LoraConfig, layer: LayerSpec, dtype: torch.dtype) -> None:
        super().__init__(config, layer)
        options: dict[str, Any] = {"device": layer.device, "dtype": dtype}
        self.lora_embedding_A = Vector(torch.zeros(self.rank, layer.in_features, **options))
        self.lora_embedding_B = Vector(torch.zeros(layer.out_features, self.rank, **options))
        # the roles are swapped here, as in PEFT: A starts at zero, B at random
        nn.init.normal_(self.lora_embedding_B.weight)
        if config.init_lora_weights is False:
            nn.init.normal_(self.lora_embedding_A.weight)

    def after(self, x: Tensor, y: Tensor, weight: DenseWeight) -> Tensor:
        h = functional.embedding(x, self.lora_embedding_A.weight.T) * (self.scaling * self.layer.output_scale)
        return y + (h @ self.lora_embedding_B.weight.T).to(y.dtype)

    def delta(self, weight: Tensor) -> Tensor:
        product = self.lora_embedding_B.weight.detach().float() @ self.lora_embedding_A.weight.detach().float()
        return (self.scaling * product).T.to(weight.dtype)

    def file_keys(self) -> dict[str, str]:
        return {f"{name}.weight": name for name in ("lora_embedding_A", "lora_embedding_B")}


class LoraConv(LoraSite):
    """LoRA beside a convolution: A has the kernel of the base and rank channels, B is 1 wide."""

    def __init__(self, config: LoraConfig, layer: LayerSpec, dtype: torch.dtype) -> None:
        super().__init__(config, layer)
        geometry = layer.conv
        assert geometry is not None
        if self.rank % geometry.groups:
            raise AttachError(
                f"{layer.path}: rank {self.rank} is no multiple of the convolution's {geometry.groups} groups; "
                "choose another rank or exclude this module"
            )
        kind: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(geometry.kernel_size) - 1]
        options: dict[str, Any] = {"device": layer.device, "dtype": dtype}
        self.lora_A = kind(
            layer.in_features,
            self.rank,
            geometry.kernel_size,
            geometry.stride,
            geometry.padding,
            geometry.dilation,
            bias=False,
            padding_mode=geometry.padding_mode,
            **options,
        )
        self.lora_B = kind(self.rank, layer.out_features, 1, groups=geometry.groups, bias=config.lora_bias, **options)
        _initialize(self.lora_A, self.lora_B, config.init_lora_weights, self.rank)

    def after(self, x: Tensor, y: Tensor, weight: DenseWeight) -> Tensor:
        h = self.lora_A(self.lora_dropout(x).to(self.lora_A.weight.dtype))
        return y + (self.lora_B(h) * self.scaling).to(y.dtype)

    def delta(self, weight: Tensor) -> Tensor:
        b_OR = self.lora_B.weight.detach().float().flatten(1)
        a_RK = self.lora_A.weight.detach().float().flatten(1)
        return (self.scaling * (b_OR @ a_RK)).reshape(weight.shape).to(weight.dtype)


def _initialize(a: nn.Linear, b: nn.Linear, how: Initialization, rank: int) -> None:
    """The product starts at zero (A Kaiming or Gaussian, B zero), or nowhere in particular with False."""
    if how == "gaussian":
        nn.init.normal_(a.weight, std=1 / rank)
    elif how:
        nn.init.kaiming_uniform_(a.weight, a=math.sqrt(5))
    if how:
        nn.init.zeros_(b.weight)
        if b.bias is not None:
            nn.init.zeros_(b.bias)


class Lora(SiteMethod[LoraConfig]):
    """Low-rank adaptation of linear layers, embeddings and convolutions."""

    config_class = LoraConfig
    recipe_targets = "all-linear"

    def site(self, config: LoraConfig, layer: LayerSpec, float32: bool) -> Site:
        dtype = adapter_dtype(layer, float32)
        shapes: dict[str, type[LoraSite]] = {"linear": LoraLinear, "embedding": LoraEmbedding, "conv": LoraConv}
        return shapes[layer.kind](config, layer, dtype)  # type: ignore[call-arg]

    def default_targets(self, model_type: str) -> list[str] | str | None:
        return LORA_TARGETS.get(model_type)

    def biases(self, config: LoraConfig) -> str:
        return config.bias


methods.add("lora", Lora())
