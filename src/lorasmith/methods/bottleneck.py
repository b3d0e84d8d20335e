"""Bottleneck adapters: y + s up(act(down(y))) behind the projections that end the attention and feed-forward blocks.

down [size, width], up [width, size], both with biases; up starts at zero, so the model's function is unchanged.
Source: Houlsby et al., arXiv 1902.00751, section 2.1 (after both blocks); Pfeiffer et al., arXiv 2005.00247 (after the
feed-forward block only: name that projection as the target).
"""

from collections.abc import Callable
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
from lorasmith.models.families import BLOCK_ENDS

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
}


@dataclass
class BottleneckConfig(LayeredConfig):
    """bottleneck_size is the inner width; scaling multiplies the adapter's output.

    Raises AttachError for a size below 1 or an unknown activation.
    """

    METHOD: ClassVar[str] = "BOTTLENECK"

    bottleneck_size: int = 16
    activation: Literal["relu", "gelu", "silu"] = "relu"
    dropout: float = 0.0
    scaling: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bottleneck_size < 1:
            raise AttachError(f"bottleneck_size={self.bottleneck_size} must be at least 1")
        if self.activation not in _ACTIVATIONS:
            raise AttachError(f"activation={self.activation!r} is not one of {', '.join(_ACTIVATIONS)}")


class BottleneckSite(Site):
    """The adapter behind one projection."""

    def __init__(self, config: BottleneckConfig, layer: LayerSpec, dtype: torch.dtype) -> None:
        super().__init__(layer)
        self.activation = _ACTIVATIONS[config.activation]
        self.scaling = config.scaling
        self.adapter_dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        width, size = layer.out_features, config.bottleneck_size
        self.adapter_down = nn.Linear(width, size, device=layer.device, dtype=dtype)
        self.adapter_up = nn.Linear(size, width, device=layer.device, dtype=dtype)
        nn.init.zeros_(self.adapter_up.weight)
        nn.init.zeros_(self.adapter_up.bias)

    def describe(self) -> str:
        return f"bottleneck of {self.adapter_down.out_features}, scaling {self.scaling:g}"

    def after(self, x: Tensor, y: Tensor, weight: BaseWeight) -> Tensor:
        h = _linear(self.adapter_down, y)
        h = self.adapter_dropout(self.activation(h))
        return y + self.scaling * _linear(self.adapter_up, h)


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return functional.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))


class Bottleneck(SiteMethod[BottleneckConfig]):
    """Houlsby's and Pfeiffer's adapters."""

    config_class = BottleneckConfig

    def site(self, config: BottleneckConfig, layer: LayerSpec, float32: bool, shared: nn.Module | None) -> Site:
        if layer.kind != "linear":
            raise AttachError(f"{layer.path}: bottleneck adapters stand behind linear layers; exclude this module")
        return BottleneckSite(config, layer, adapter_dtype(layer, float32))

    def default_targets(self, model_type: str) -> list[str] | str | None:
        return BLOCK_ENDS.get(model_type)


methods.add("bottleneck", Bottleneck())
