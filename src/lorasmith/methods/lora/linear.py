"""LoRA beside a linear layer: y = x W^T + b + s drop(x) A^T B^T with A [rank, in], B [out, rank]."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from lorasmith.methods.layer import LayerSpec
from lorasmith.methods.lora.config import LoraConfig
from lorasmith.methods.lora.site import LoraSite, draw_
from lorasmith.methods.site import BaseWeight
from lorasmith.ops import LowRank


class LoraLinear(LoraSite):
    """LoRA beside a linear layer."""

    def __init__(self, config: LoraConfig, layer: LayerSpec, dtype: torch.dtype) -> None:
        super().__init__(config, layer)
        options = {"device": layer.device, "dtype": dtype}
        self.lora_A = nn.Linear(layer.in_features, self.rank, bias=False, **options)
        self.lora_B = nn.Linear(self.rank, layer.out_features, bias=config.lora_bias, **options)
        draw_(self.start, self.lora_A, self.lora_B, self.rank)

    @torch.no_grad()
    def settle(self, weight: BaseWeight, fresh: bool) -> None:
        factors = self.start.from_base(weight, self.rank, self.scaling, fresh)
        if factors is not None and fresh:
            self.lora_A.weight.copy_(factors[0])
            self.lora_B.weight.copy_(factors[1])

    def after(self, x: Tensor, y: Tensor, weight: BaseWeight) -> Tensor:
        # the factors may be f32 beside a 16-bit x; the scaling goes into the small product
        h = functional.linear(self.lora_dropout(x), self.lora_A.weight.to(x.dtype)) * self.scaling
        bias = None if self.lora_B.bias is None else self.lora_B.bias.to(x.dtype) * self.scaling
        return y + functional.linear(h, self.lora_B.weight.to(x.dtype), bias).to(y.dtype)

    def low_rank(self, weight: BaseWeight) -> LowRank | None:
        if self.lora_B.bias is not None:
            return None
        return LowRank(self.lora_A.weight, self.lora_B.weight, self.scaling, self.dropped)

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.lora_A.weight, self.lora_B.weight

    def as_rows(self, weight: Tensor) -> Tensor:
        return weight

    def times(self, weight: BaseWeight, rows: Tensor) -> Tensor:
        return weight.times(rows)

    def delta(self, weight: Tensor) -> Tensor:
        product = self.lora_B.weight.detach().float() @ self.lora_A.weight.detach().float()
        return (self.scaling * product).to(weight.dtype)
