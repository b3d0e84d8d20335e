"""LoRA beside an embedding: the looked-up columns of A [rank, rows], widened by B [width, rank]."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lorasmith.methods.layer import LayerSpec
from lorasmith.methods.lora.config import LoraConfig
from lorasmith.methods.lora.site import LoraSite
from lorasmith.methods.site import BaseWeight, Vector


class LoraEmbedding(LoraSite):
    """LoRA beside an embedding: A [rank, rows], B [width, rank], no dropout."""

    def __init__(self, config: LoraConfig, layer: LayerSpec, dtype: torch.dtype) -> None:
        super().__init__(config, layer)
        options: dict[str, Any] = {"device": layer.device, "dtype": dtype}
        self.lora_embedding_A = Vector(torch.zeros(self.rank, layer.in_features, **options))
        self.lora_embedding_B = Vector(torch.zeros(layer.out_features, self.rank, **options))
        # the roles are swapped here, as in PEFT: A starts at zero, B at random
        nn.init.normal_(self.lora_embedding_B.weight)
        if self.start.wanders:
            nn.init.normal_(self.lora_embedding_A.weight)

    def after(self, x: Tensor, y: Tensor, weight: BaseWeight) -> Tensor:
        h = functional.embedding(x, self.lora_embedding_A.weight.T) * (self.scaling * self.layer.output_scale)
        return y + (h @ self.lora_embedding_B.weight.T).to(y.dtype)

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.lora_embedding_A.weight, self.lora_embedding_B.weight

    def as_rows(self, weight: Tensor) -> Tensor:
        return weight.T

    def delta(self, weight: Tensor) -> Tensor:
        product = self.lora_embedding_B.weight.detach().float() @ self.lora_embedding_A.weight.detach().float()
        return (self.scaling * product).T.to(weight.dtype)

    def file_keys(self) -> dict[str, str]:
        return {f"{name}.weight": name for name in ("lora_embedding_A", "lora_embedding_B")}

    def exported(self) -> dict[str, Tensor]:
        """The factors, of twice the rank where that of the linear layers doubles: zeros do nothing."""
        tensors = super().exported()
        if not self.start.shifts:
            return tensors
        a, b = tensors["lora_embedding_A"], tensors["lora_embedding_B"]
        return {
            "lora_embedding_A": torch.cat([a, torch.zeros_like(a)]),
            "lora_embedding_B": torch.cat([b, torch.zeros_like(b)], 1),
        }

    def take_exported_(self, tensors: Mapping[str, Tensor]) -> None:
        a, b = tensors["lora_embedding_A"][: self.rank], tensors["lora_embedding_B"][:, : self.rank]
        super().take_exported_({"lora_embedding_A": a, "lora_embedding_B": b})
