"""QA-LoRA beside a linear layer: y = x W^T + b + s pool(drop(x)) A^T B^T with A [rank, in / group], B [out, rank].

The input is averaged over groups of neighbouring features, so the update of the weight is constant over a group of
columns, and adding to the zero points of a quantized weight merges it exactly. Source: QA-LoRA, arXiv 2309.14717,
section 3.3 and algorithm 1. The factor on the averages is PEFT's, the number of groups, so that files mean the same in
both; the paper's is the size of a group.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from lorasmith.errors import AttachError
from lorasmith.methods.layer import LayerSpec
from lorasmith.methods.lora.config import LoraConfig
from lorasmith.methods.lora.site import LoraSite, draw_
from lorasmith.methods.site import BaseWeight
from lorasmith.ops import LowRank


class LoraPooled(LoraSite):
    """LoRA on the pooled input of a linear layer.

    Raises AttachError where in_features is no whole number of groups.
    """

    def __init__(self, config: LoraConfig, layer: LayerSpec, dtype: torch.dtype) -> None:
        super().__init__(config, layer)
        self.group = config.qalora_group_size
        if layer.in_features % self.group:
            raise AttachError(
                f"{layer.path}: in_features={layer.in_features} is no multiple of qalora_group_size={self.group}; "
                "choose a group that divides it"
            )
        self.groups = layer.in_features // self.group
        options = {"device": layer.device, "dtype": dtype}
        self.lora_A = nn.Linear(self.groups, self.rank, bias=False, **options)
        self.lora_B = nn.Linear(self.rank, layer.out_features, bias=config.lora_bias, **options)
        draw_(self.start, self.lora_A, self.lora_B, self.rank)

    def describe(self) -> str:
        return f"QA-LoRA, rank {self.rank}, scaling {self.scaling:g}, groups of {self.group}"

    @property
    def factor(self) -> float:
        """What a sum over a group is multiplied by: its mean times the number of groups."""
        return self.groups / self.group

    def after(self, x: Tensor, y: Tensor, weight: BaseWeight) -> Tensor:
        sums = self.lora_dropout(x).unflatten(-1, (self.groups, self.group)).sum(dim=-1)
        h = functional.linear(sums, self.lora_A.weight.to(x.dtype)) * (self.scaling * self.factor)
        bias = None if self.lora_B.bias is None else self.lora_B.bias.to(x.dtype) * self.scaling
        return y + functional.linear(h, self.lora_B.weight.to(x.dtype), bias).to(y.dtype)

    def factors(self) -> tuple[Tensor, Tensor]:
        """A with every column standing for its whole group [rank, in], and B."""
        return self.lora_A.weight.repeat_interleave(self.group, dim=1) * self.factor, self.lora_B.weight

    def as_rows(self, weight: Tensor) -> Tensor:
        return weight

    def low_rank(self, weight: BaseWeight) -> LowRank | None:
        if self.lora_B.bias is not None:
            return None
        # not pooled first, so that x passes through one step together with the base's product
        return LowRank(*self.factors(), self.scaling, self.dropped)

    def delta(self, weight: Tensor) -> Tensor:
        grouped, group = self.grouped_delta()
        return grouped.repeat_interleave(group, dim=1).to(weight.dtype)

    def grouped_delta(self) -> tuple[Tensor, int]:
        product = self.lora_B.weight.detach().float() @ self.lora_A.weight.detach().float()
        return (self.scaling * self.factor) * product, self.group
