"""VeRA: y = x W^T + b + l_b * (B (l_d * (A drop(x)))); A [R, in] and B [out, R] are random, frozen and shared.

Only the vectors l_b [out] and l_d [R] train. A and B are as large as the widest layer asks; a layer reads their first
columns and rows. Source: arXiv 2310.11454, section 3. While training, l_b and l_d are multiplied into B: the update is
then one step with the base's weight, A stays as it is and x need not be kept for it. What that costs is a matrix
[out, R] a layer. Without gradients nothing is copied.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from lorasmith.errors import AttachError
from lorasmith.methods.config import LayeredConfig
from lorasmith.methods.layer import LayerSpec
from lorasmith.methods.method import SiteMethod
from lorasmith.methods.registry import methods
from lorasmith.methods.site import BaseWeight, Constant, Site, Vector, adapter_dtype
from lorasmith.models.families import VERA_TARGETS
from lorasmith.ops import LowRank
from lorasmith.ops.precision import product_dtype


@dataclass
class VeraConfig(LayeredConfig):
    """PEFT's fields and defaults.

    projection_prng_key seeds A and B, which are in the file too unless save_projection is False. d_initial is where l_d
    starts. bias trains biases of the base too: "none", "all", or "vera_only" for the adapted modules. Raises
    AttachError for a rank below 1, a dropout outside 0 to 1 and another bias.
    """

    METHOD: ClassVar[str] = "VERA"
    OURS: ClassVar[tuple[str, ...]] = ("exclude_modules",)

    r: int = 256
    projection_prng_key: int = 0
    save_projection: bool = True
    vera_dropout: float = 0.0
    d_initial: float = 0.1
    fan_in_fan_out: bool = False
    bias: Literal["none", "all", "vera_only"] = "none"
    init_weights: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.r < 1:
            raise AttachError(f"r={self.r}: a rank must be at least 1")
        if not 0 <= self.vera_dropout < 1:
            raise AttachError(f"vera_dropout={self.vera_dropout} must lie in [0, 1)")
        if self.bias not in ("none", "all", "vera_only"):
            raise AttachError(f"bias={self.bias!r} is not one of none, all, vera_only")


class Projections(nn.Module):
    """The frozen A [R, in] and B [out, R] of one adapter, for the widest of its layers."""

    def __init__(self, config: VeraConfig, layers: Sequence[LayerSpec], dtype: torch.dtype) -> None:
        super().__init__()
        # a file without them means what this generator draws, so order and distribution are part of the format
        generator = torch.Generator("cpu").manual_seed(config.projection_prng_key)
        inputs = max(layer.in_features for layer in layers)
        outputs = max(layer.out_features for layer in layers)
        options: dict[str, Any] = {"device": layers[0].device, "dtype": dtype}
        self.a = Constant(_kaiming((config.r, inputs), generator).to(**options))
        self.b = Constant(_kaiming((outputs, config.r), generator).to(**options))


def _kaiming(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    bound = math.sqrt(3.0) * (math.sqrt(2) / math.sqrt(shape[1]))
    return torch.empty(shape, dtype=torch.float32, device="cpu").uniform_(-bound, bound, generator=generator)


class VeraSite(Site):
    """The two vectors of one layer."""

    def __init__(self, config: VeraConfig, layer: LayerSpec, dtype: torch.dtype, projections: Projections) -> None:
        super().__init__(layer)
        self.saves_projections = config.save_projection
        self.vera_dropout = nn.Dropout(config.vera_dropout) if config.vera_dropout else nn.Identity()
        options: dict[str, Any] = {"device": layer.device, "dtype": dtype}
        b = torch.zeros(layer.out_features) if config.init_weights else torch.ones(layer.out_features)
        d = torch.full((config.r,), config.d_initial) if config.init_weights else torch.randn(config.r)
        self.vera_lambda_b = Vector(b.to(**options))
        self.vera_lambda_d = Vector(d.to(**options))
        self.vera_A, self.vera_B = projections.a, projections.b

    def describe(self) -> str:
        return f"VeRA, rank {self.vera_A.weight.shape[0]}"

    @property
    def a(self) -> Tensor:
        """This layer's columns of A: [R, in]."""
        return self.vera_A.weight[:, : self.layer.in_features]

    @property
    def b(self) -> Tensor:
        """This layer's rows of B: [out, R]."""
        return self.vera_B.weight[: self.layer.out_features]

    def scaled_b(self) -> Tensor:
        """B with l_b on its rows and l_d on its columns: [out, R]."""
        return self.vera_lambda_b.weight[:, None] * self.b * self.vera_lambda_d.weight

    def low_rank(self, weight: BaseWeight) -> LowRank | None:
        if not torch.is_grad_enabled():
            return None
        dropout = self.vera_dropout.p if isinstance(self.vera_dropout, nn.Dropout) and self.vera_dropout.training else 0
        return LowRank(self.a, self.scaled_b(), 1.0, dropout)

    def after(self, x: Tensor, y: Tensor, weight: BaseWeight) -> Tensor:
        wide = product_dtype(x.dtype, x.device)
        h = functional.linear(self.vera_dropout(x).to(wide), self.a.to(wide)) * self.vera_lambda_d.weight.to(wide)
        return y + (functional.linear(h, self.b.to(wide)) * self.vera_lambda_b.weight.to(wide)).to(y.dtype)

    def refuses_merge(self) -> str | None:
        return None

    @torch.no_grad()
    def delta(self, weight: Tensor) -> Tensor:
        return (self.scaled_b().float() @ self.a.float()).to(weight.dtype)

    def file_keys(self) -> dict[str, str]:
        own = {f"{name}.weight": name for name in ("vera_lambda_b", "vera_lambda_d")}
        shared = {f"{name}.weight": f"/{name}" for name in ("vera_A", "vera_B")}
        return own | shared if self.saves_projections else own


class Vera(SiteMethod[VeraConfig]):
    """Vector-based random matrix adaptation."""

    config_class = VeraConfig
    recipe_targets = "all-linear"

    def shared(self, config: VeraConfig, layers: Sequence[LayerSpec], float32: bool) -> Projections:
        for layer in layers:
            if layer.kind != "linear":
                raise AttachError(f"{layer.path}: VeRA serves linear layers; exclude this module")
        return Projections(config, layers, adapter_dtype(layers[0], float32))

    def site(self, config: VeraConfig, layer: LayerSpec, float32: bool, shared: nn.Module | None) -> Site:
        assert isinstance(shared, Projections)
        return VeraSite(config, layer, adapter_dtype(layer, float32), shared)

    def default_targets(self, model_type: str) -> list[str] | str | None:
        return VERA_TARGETS.get(model_type)

    def biases(self, config: VeraConfig) -> str:
        return "lora_only" if config.bias == "vera_only" else config.bias


methods.add("vera", Vera())
