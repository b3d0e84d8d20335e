"""LoRA that begins as a part of the base's weight: y = x W^T + b + s drop(x) (B A - B0 A0)^T.

A0, B0 are the start, frozen. The published methods change W to W - s B0 A0 instead; here W stays, and so a base carries
any number of such adapters, and is itself again when they are off. Dropout falls on the change alone: falling on B A it
would drop parts of the base. Sources: PiSSA, arXiv 2404.02948, section 3; OLoRA, arXiv 2406.01775, section 3.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lorasmith.methods.kept import Kept
from lorasmith.methods.layer import LayerSpec
from lorasmith.methods.lora.config import LoraConfig
from lorasmith.methods.lora.site import LoraSite
from lorasmith.methods.site import BaseWeight, Constant
from lorasmith.ops import LowRank

A_KEY, B_KEY = "lora_A.weight", "lora_B.weight"


class LoraShifted(LoraSite):
    """A and B beside a linear layer, and their frozen start that is subtracted."""

    def __init__(self, config: LoraConfig, layer: LayerSpec, dtype: torch.dtype) -> None:
        super().__init__(config, layer)
        options: dict[str, Any] = {"device": layer.device, "dtype": dtype}
        self.lora_A = nn.Linear(layer.in_features, self.rank, bias=False, **options)
        self.lora_B = nn.Linear(self.rank, layer.out_features, bias=False, **options)
        self.lora_start_A = Constant(torch.zeros(self.rank, layer.in_features, **options))
        self.lora_start_B = Constant(torch.zeros(layer.out_features, self.rank, **options))
        self._stacked: Kept[tuple[Tensor, Tensor]] = Kept()

    def describe(self) -> str:
        return f"{type(self.start).__name__}, {super().describe()}"

    @torch.no_grad()
    def settle(self, weight: BaseWeight, fresh: bool) -> None:
        factors = self.start.from_base(weight, self.rank, self.scaling, fresh)
        assert factors is not None
        self.lora_start_A.weight.copy_(factors[0])
        self.lora_start_B.weight.copy_(factors[1])
        if fresh:
            self.lora_A.weight.copy_(self.lora_start_A.weight)
            self.lora_B.weight.copy_(self.lora_start_B.weight)

    def after(self, x: Tensor, y: Tensor, weight: BaseWeight) -> Tensor:
        x = self.lora_dropout(x)
        change = _update(x, self.lora_A.weight, self.lora_B.weight, self.scaling)
        start = _update(x, self.lora_start_A.weight, self.lora_start_B.weight, self.scaling)
        # the difference first: either is as large as y, and in 16 bits y + a - b would keep their roundings
        return y + (change - start).to(y.dtype)

    def low_rank(self, weight: BaseWeight) -> LowRank | None:
        start = (self.lora_start_A.weight, self.lora_start_B.weight)
        if torch.is_grad_enabled():
            # whoever trains may write to the tensors unseen
            self._stacked.forget()
            return LowRank(self.lora_A.weight, self.lora_B.weight, self.scaling, self.dropped, start=start)
        # for a generated token's few rows stacking takes longer than multiplying
        sources = (self.lora_A.weight, self.lora_B.weight, *start)
        return LowRank(*self._stacked.get(sources, self.factors), self.scaling, self.dropped)

    def factors(self) -> tuple[Tensor, Tensor]:
        a = torch.cat([self.lora_A.weight, self.lora_start_A.weight])
        return a, torch.cat([self.lora_B.weight, -self.lora_start_B.weight], 1)

    def as_rows(self, weight: Tensor) -> Tensor:
        return weight

    def times(self, weight: BaseWeight, rows: Tensor) -> Tensor:
        return weight.times(rows)

    def delta(self, weight: Tensor) -> Tensor:
        now = self.lora_B.weight.detach().float() @ self.lora_A.weight.detach().float()
        start = self.lora_start_B.weight.float() @ self.lora_start_A.weight.float()
        return (self.scaling * (now - start)).to(weight.dtype)

    def exported(self) -> dict[str, Tensor]:
        """A plain LoRA of twice the rank: [A; A0] and [B, -B0]."""
        a, b = self.factors()
        return {A_KEY: a.detach(), B_KEY: b.detach()}

    @torch.no_grad()
    def take_exported_(self, tensors: Mapping[str, Tensor]) -> None:
        a, a_start = tensors[A_KEY].split(self.rank)
        b, b_start = tensors[B_KEY].split(self.rank, 1)
        self.lora_A.weight.copy_(a)
        self.lora_B.weight.copy_(b)
        self.lora_start_A.weight.copy_(a_start)
        self.lora_start_B.weight.copy_(-b_start)


def _update(x: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    # the factors may be f32 beside a 16-bit x
    return functional.linear(functional.linear(x, a.to(x.dtype)) * scaling, b.to(x.dtype))
