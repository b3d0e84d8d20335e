"""Bottleneck adapters: y + s up(act(down(h))) where blocks of a layer end, h being what they give (y) or got (x).

down [size, width], up [width, size], both with biases; up starts at zero, so the model's function is unchanged.
placement says where: "houlsby" behind the projections that end attention and feed-forward (arXiv 1902.00751, section
2.1), "pfeiffer" behind the feed-forward's alone (arXiv 2005.00247), "parallel" beside the whole feed-forward, whose
input it reads (arXiv 2110.04366, section 3.2). target_modules may name other modules: projections, or for "parallel"
also modules that hold several.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from lorasmith.errors import AttachError
from lorasmith.methods.config import LayeredConfig
from lorasmith.methods.layer import LayerSpec
from lorasmith.methods.method import SiteMethod
from lorasmith.methods.registry import methods
from lorasmith.methods.site import BaseWeight, Site, adapter_dtype
from lorasmith.models.families import BLOCK_ENDS, FEEDFORWARD_BLOCKS, FEEDFORWARD_ENDS

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
}
Placement = Literal["houlsby", "pfeiffer", "parallel"]
_TARGETS: dict[str, Mapping[str, list[str] | str]] = {
    "houlsby": BLOCK_ENDS,
    "pfeiffer": FEEDFORWARD_ENDS,
    "parallel": FEEDFORWARD_BLOCKS,
}


@dataclass
class BottleneckConfig(LayeredConfig):
    """placement says where, bottleneck_size is the inner width, and scaling multiplies the adapter's output.

    Raises AttachError for an unknown placement or activation and a size below 1.
    """

    METHOD: ClassVar[str] = "BOTTLENECK"

    placement: Placement = "houlsby"
    bottleneck_size: int = 16
    activation: Literal["relu", "gelu", "silu"] = "relu"
    dropout: float = 0.0
    scaling: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bottleneck_size < 1:
            raise AttachError(f"bottleneck_size={self.bottleneck_size} must be at least 1")
        if self.placement not in _TARGETS:
            raise AttachError(f"placement={self.placement!r} is not one of {', '.join(_TARGETS)}")
        if self.activation not in _ACTIVATIONS:
            raise AttachError(f"activation={self.activation!r} is not one of {', '.join(_ACTIVATIONS)}")


class BottleneckSite(Site):
    """The adapter behind one module, or beside it."""

    def __init__(self, config: BottleneckConfig, layer: LayerSpec, dtype: torch.dtype) -> None:
        super().__init__(layer)
        self.activation = _ACTIVATIONS[config.activation]
        self.scaling = config.scaling
        self.adapter_dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self.parallel, size = config.placement == "parallel", config.bottleneck_size
        read = layer.in_features if self.parallel else layer.out_features
        self.adapter_down = nn.Linear(read, size, device=layer.device, dtype=dtype)
        self.adapter_up = nn.Linear(size, layer.out_features, device=layer.device, dtype=dtype)
        nn.init.zeros_(self.adapter_up.weight)
        nn.init.zeros_(self.adapter_up.bias)

    def describe(self) -> str:
        where = "beside" if self.parallel else "behind"
        return f"bottleneck of {self.adapter_down.out_features} {where} it, scaling {self.scaling:g}"

    def after(self, x: Tensor, y: Tensor, weight: BaseWeight) -> Tensor:
        h = _linear(self.adapter_down, x if self.parallel else y)
        h = self.adapter_dropout(self.activation(h))
        return y + self.scaling * _linear(self.adapter_up, h)


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return functional.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))


class Bottleneck(SiteMethod[BottleneckConfig]):
    """Houlsby's, Pfeiffer's and parallel adapters."""

    config_class = BottleneckConfig

    def prepare(self, config: BottleneckConfig, model_type: str) -> None:
        if config.target_modules is None:
            config.target_modules = _TARGETS[config.placement].get(model_type)
        if config.target_modules is None:
            what = "no module that is the whole feed-forward" if config.placement == "parallel" else "no default"
            raise AttachError(
                f"placement={config.placement!r}: {what} is known for model type {model_type!r}; name target_modules"
            )

    def sits_on_blocks(self, config: BottleneckConfig) -> bool:
        return config.placement == "parallel"

    def site(self, config: BottleneckConfig, layer: LayerSpec, float32: bool, shared: nn.Module | None) -> Site:
        if layer.kind not in ("linear", "block"):
            raise AttachError(f"{layer.path}: bottleneck adapters stand behind linear layers; exclude this module")
        return BottleneckSite(config, layer, adapter_dtype(layer, float32))

    def default_targets(self, model_type: str) -> list[str] | str | None:
        return BLOCK_ENDS.get(model_type)


methods.add("bottleneck", Bottleneck())
