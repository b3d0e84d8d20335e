"""LoRA beside a convolution: A is a convolution of the base's shape to rank channels, B one of kernel 1."""

from typing import Any

import torch
from torch import Tensor, nn

from lorasmith.errors import AttachError
from lorasmith.methods.layer import LayerSpec
from lorasmith.methods.lora.config import LoraConfig
from lorasmith.methods.lora.site import LoraSite, draw_
from lorasmith.methods.site import BaseWeight


class LoraConv(LoraSite):
    """LoRA beside a convolution: A has the kernel of the base and rank channels, B is 1 wide."""

    def __init__(self, config: LoraConfig, layer: LayerSpec, dtype: torch.dtype) -> None:
        super().__init__(config, layer)
        geometry = layer.conv
        assert geometry is not None
        if not self.start.serves_convolutions:
            raise AttachError(
                f"{layer.path}: init_lora_weights={config.init_lora_weights!r} is for linear layers, not for "
                "convolutions; choose another start or exclude this module"
            )
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
        draw_(self.start, self.lora_A, self.lora_B, self.rank)

    def after(self, x: Tensor, y: Tensor, weight: BaseWeight) -> Tensor:
        h = self.lora_A(self.lora_dropout(x).to(self.lora_A.weight.dtype))
        return y + (self.lora_B(h) * self.scaling).to(y.dtype)

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.lora_A.weight.flatten(1), self.lora_B.weight.flatten(1)

    def as_rows(self, weight: Tensor) -> Tensor:
        return weight.flatten(1)

    def delta(self, weight: Tensor) -> Tensor:
        b_OR = self.lora_B.weight.detach().float().flatten(1)
        a_RK = self.lora_A.weight.detach().float().flatten(1)
        return (self.scaling * (b_OR @ a_RK)).reshape(weight.shape).to(weight.dtype)
