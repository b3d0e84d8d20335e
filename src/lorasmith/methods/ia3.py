"""IA3: learned vectors that scale outputs (keys, values) or inputs (feed-forward) of linear layers and convolutions.

y = l * (x W^T + b) at an attention target, y = (l * x) W^T + b at a feed-forward one; l starts at one.
Source: arXiv 2205.05638, section 3.3.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from lorasmith.errors import AttachError
from lorasmith.methods.config import TargetedConfig
from lorasmith.methods.layer import LayerSpec
from lorasmith.methods.matching import matches
from lorasmith.methods.method import SiteMethod
from lorasmith.methods.registry import methods
from lorasmith.methods.site import BaseWeight, Site, Vector, adapter_dtype
from lorasmith.models.families import IA3_FEEDFORWARD, IA3_TARGETS


@dataclass
class IA3Config(TargetedConfig):
    """PEFT's fields and defaults; feedforward_modules are those of the targets whose input is scaled.

    Raises AttachError where a feed-forward module is not among the targets.
    """

    METHOD: ClassVar[str] = "IA3"

    feedforward_modules: list[str] | set[str] | str | None = None
    fan_in_fan_out: bool = False
    init_ia3_weights: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        inside, targets = self.feedforward_modules, self.target_modules
        if isinstance(inside, list | set) and isinstance(targets, list | set) and not set(inside) <= set(targets):
            strangers = sorted(set(inside) - set(targets))
            raise AttachError(f"feedforward_modules {strangers} are not among target_modules; add them there too")


class IA3Site(Site):
    """One vector; its shape in files is [out, 1] for outputs, [1, in] for inputs, with ones behind for convolutions."""

    def __init__(self, layer: LayerSpec, scales_input: bool, dtype: torch.dtype, ones: bool) -> None:
        super().__init__(layer)
        self.scales_input = scales_input
        size = layer.in_features if scales_input else layer.out_features
        shape: tuple[int, ...] = (1, size) if scales_input else (size, 1)
        if layer.conv is not None:
            shape = (1, size, *(1 for _ in layer.conv.kernel_size))
        value = torch.ones(shape) if ones else torch.randn(shape)
        self.ia3_l = Vector(value.to(device=layer.device, dtype=dtype))

    def describe(self) -> str:
        return f"IA3 on the {'input' if self.scales_input else 'output'}"

    def refuses_merge(self) -> str | None:
        return None

    def _factor(self, like: Tensor) -> Tensor:
        # features stand last for linear layers, first behind the batch for convolutions
        factor = self.ia3_l.weight.to(like.dtype)
        return factor.flatten() if self.layer.conv is None else factor

    def before(self, x: Tensor) -> Tensor:
        return x * self._factor(x) if self.scales_input else x

    def after(self, x: Tensor, y: Tensor, weight: BaseWeight) -> Tensor:
        return y if self.scales_input else y * self._factor(y)

    def delta(self, weight: Tensor) -> Tensor:
        # weight [out, in, ...]
        change = self.ia3_l.weight.detach().to(weight.dtype).flatten() - 1
        axis = 1 if self.scales_input else 0
        return weight * change.reshape([-1 if i == axis else 1 for i in range(weight.dim())])

    def delta_bias(self, bias: Tensor | None) -> Tensor | None:
        if bias is None or self.scales_input:
            return None
        return bias * (self.ia3_l.weight.detach().to(bias.dtype).flatten() - 1)

    def file_keys(self) -> dict[str, str]:
        return {"ia3_l.weight": "ia3_l"}


class IA3(SiteMethod[IA3Config]):
    """Infused adapter by inhibiting and amplifying inner activations."""

    config_class = IA3Config

    def prepare(self, config: IA3Config, model_type: str) -> None:
        if config.feedforward_modules is None:
            known = IA3_FEEDFORWARD.get(model_type)
            if known is None and config.target_modules is None:
                raise AttachError(f"feedforward_modules: none is known for model type {model_type!r}; name them")
            # a target list of one's own scales outputs unless told otherwise, as in PEFT
            config.feedforward_modules = (known or []) if config.target_modules is None else []

    def site(self, config: IA3Config, layer: LayerSpec, float32: bool, shared: nn.Module | None) -> Site:
        if layer.kind == "embedding" or (layer.conv is not None and layer.conv.groups > 1):
            raise AttachError(f"{layer.path}: IA3 serves linear layers and ungrouped convolutions; exclude this module")
        scales_input = matches(layer.path, config.feedforward_modules)
        return IA3Site(layer, scales_input, adapter_dtype(layer, float32), config.init_ia3_weights)

    def default_targets(self, model_type: str) -> list[str] | str | None:
        return IA3_TARGETS.get(model_type)


methods.add("ia3", IA3())
