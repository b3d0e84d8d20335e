"""LoRA on a bare parameter: the experts of a mixture, held as one stack of matrices, or a single matrix.

Each expert e has its own factors: W_e + s B_e A_e. In PEFT's files the experts' A lie behind one another, expert by
expert, while B's columns go by rank first: A [experts x rank, in], B [out, rank x experts].
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lorasmith.methods.layer import LayerSpec
from lorasmith.methods.lora.config import LoraConfig
from lorasmith.methods.lora.site import draw_
from lorasmith.methods.site import FactorPair, Site
from lorasmith.ops import UpdatedWeight


class LoraExperts(Site):
    """LoRA on a stack [experts, out, in] (or [experts, in, out], if transposed), or on one matrix [out, in]."""

    def __init__(self, config: LoraConfig, layer: LayerSpec, dtype: torch.dtype) -> None:
        super().__init__(layer)
        assert layer.stack is not None
        self.rank, self.scaling = config.rank_of(layer.path), config.scaling_of(layer.path)
        self.experts, self.transposed = layer.stack.experts, layer.stack.transposed
        ranks, options = self.rank * self.experts, {"device": layer.device, "dtype": dtype}
        self.lora_A = nn.Linear(layer.in_features, ranks, bias=False, **options)
        self.lora_B = nn.Linear(ranks, layer.out_features, bias=False, **options)
        draw_(config.start(), self.lora_A, self.lora_B, self.rank)

    def describe(self) -> str:
        return f"LoRA on {self.experts} experts, rank {self.rank}, scaling {self.scaling:g}"

    def factor_pairs(self) -> list[FactorPair]:
        a, b = (factor.get_parameter("weight") for factor in (self.lora_A, self.lora_B))
        return [FactorPair(a, b, self.scaling, self.experts)]

    def refuses_merge(self) -> str | None:
        return None

    def factors(self) -> tuple[Tensor, Tensor]:
        """left and right, of which the product has the parameter's own axes; E experts, O out, I in, R rank."""
        a_ERI = self.lora_A.weight.unflatten(0, (self.experts, self.rank))
        b_EOR = self.lora_B.weight.unflatten(1, (self.rank, self.experts)).permute(2, 0, 1).contiguous()
        return (a_ERI.mT, b_EOR.mT) if self.transposed else (b_EOR, a_ERI)

    def changed(self, weight: Tensor) -> Tensor:
        # a single matrix has no axis of experts
        left, right = (factor.reshape(factor.shape[3 - weight.dim() :]) for factor in self.factors())
        updated = UpdatedWeight.of(weight, left, right, self.scaling)
        # a compiler fuses the sum itself, and does not see through a tensor that stands for one
        return updated.dense() if torch.compiler.is_compiling() else updated

    @torch.no_grad()
    def delta(self, weight: Tensor) -> Tensor:
        left, right = self.factors()
        return (self.scaling * (left.float() @ right.float())).reshape(weight.shape).to(weight.dtype)

    def is_older(self, tensors: Mapping[str, Tensor]) -> bool | None:
        # before peft 0.19 the axes of a stack [experts, out, in] were read as [experts, in, out]
        if self.experts == 1 or self.transposed:
            return False
        a, b = self.lora_A.weight, self.lora_B.weight
        older = (b.mT.shape, a.mT.shape)
        fits = (tensors["lora_A.weight"].shape, tensors["lora_B.weight"].shape) == older
        return None if fits and older == (a.shape, b.shape) else fits

    def from_older(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # the update is the same sum over ranks with the roles of the factors exchanged; E experts, R rank
        a_IER = tensors["lora_B.weight"].unflatten(1, (self.rank, self.experts)).transpose(1, 2)
        b_ERO = tensors["lora_A.weight"].unflatten(0, (self.experts, self.rank))
        return {"lora_A.weight": a_IER.flatten(1).mT, "lora_B.weight": b_ERO.permute(2, 1, 0).flatten(1)}
