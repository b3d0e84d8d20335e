"""LoRA beside a head that shares its weight with the embedding: the embedding's own factors, turned round."""

from torch import Tensor
from torch.nn import functional

from lorasmith.methods.layer import LayerSpec
from lorasmith.methods.lora.config import LoraConfig
from lorasmith.methods.lora.embedding import LoraEmbedding
from lorasmith.methods.lora.site import LoraSite
from lorasmith.methods.site import BaseWeight


class LoraTiedHead(LoraSite):
    """W + s (E_B E_A)^T with the embedding's factors, E_A [rank, rows] and E_B [width, rank]: W stays one weight."""

    def __init__(self, config: LoraConfig, layer: LayerSpec, partner: LoraEmbedding) -> None:
        super().__init__(config, layer)
        self.partners = (partner,)
        self.rank, self.scaling = partner.rank, partner.scaling
        self.lora_embedding_A, self.lora_embedding_B = partner.lora_embedding_A, partner.lora_embedding_B

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.lora_embedding_B.weight.T, self.lora_embedding_A.weight.T

    def as_rows(self, weight: Tensor) -> Tensor:
        return weight

    def after(self, x: Tensor, y: Tensor, weight: BaseWeight) -> Tensor:
        a, b = (factor.to(x.dtype) for factor in self.factors())
        h = functional.linear(self.lora_dropout(x), a) * self.scaling
        return y + functional.linear(h, b).to(y.dtype)

    def delta(self, weight: Tensor) -> Tensor:
        a, b = (factor.detach().float() for factor in self.factors())
        return (self.scaling * (b @ a)).to(weight.dtype)

    def file_tensors(self) -> dict[str, Tensor]:
        a, b = self.factors()
        return {"lora_A.weight": a.detach(), "lora_B.weight": b.detach()}
