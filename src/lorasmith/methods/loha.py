"""LoHa: the change of the weight is the entrywise product of two of low rank, (A1 B1) * (A2 B2), of rank up to R^2.

It is itself a product of thin matrices whose columns and rows are products of pairs, A [O, R^2] and B [R^2, K]: in this
form x is multiplied at 2 R^2 / min(O, K) or less of the dense cost, and as one step with the base's weight. For rank 8
on a 2048 x 2048 layer: 0.26 M multiplications a token instead of 4.2 M, and no matrix of the weight's size.
Source: FedPara, arXiv 2108.06098, section 2.2 and proposition 3 (convolutions).
"""

from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from lorasmith.methods.convolution import convolve, mix_channels
from lorasmith.methods.kept import Kept
from lorasmith.methods.layer import LayerSpec
from lorasmith.methods.lycoris import LycorisConfig, LycorisSite, bent, kernel_axes
from lorasmith.methods.method import SiteMethod
from lorasmith.methods.registry import methods
from lorasmith.methods.site import BaseWeight, Site, adapter_dtype
from lorasmith.models.families import LORA_TARGETS
from lorasmith.ops import LowRank


@dataclass
class LoHaConfig(LycorisConfig):
    """PEFT's fields and defaults. init_weights=False starts anywhere instead of at no change.

    use_effective_conv2d gives a convolution's kernel axes a core tensor of their own.
    """

    METHOD: ClassVar[str] = "LOHA"

    init_weights: bool = True


class LoHaSite(LycorisSite):
    """Two products of low rank. K is in_features, times the kernel's size for a convolution."""

    def __init__(self, config: LoHaConfig, layer: LayerSpec, dtype: torch.dtype) -> None:
        super().__init__(config, layer, dtype, scale_rows=True)
        kernel = kernel_axes(layer, "LoHa")
        groups = 1 if layer.conv is None else layer.conv.groups
        rank, rows, inputs = self.rank, layer.out_features, layer.in_features // groups
        # without gradients the thin factors hold as long as the tensors do
        self._thin: Kept[tuple[Tensor, Tensor]] = Kept()
        self.columns = inputs * prod(kernel)
        self.effective = config.use_effective_conv2d and prod(kernel) > 1
        zero = config.init_weights
        if self.effective:
            core = (rank, rank, *kernel, *(1 for _ in range(2 - len(kernel))))
            self.hada_t1, self.hada_t2 = self.new(*core), self.new(*core)
            self.hada_w1_a, self.hada_w1_b = self.new(rank, rows), self.new(rank, inputs)
            self.hada_w2_a, self.hada_w2_b = self.new(rank, rows), self.new(rank, inputs, zero=zero)
        else:
            self.hada_w1_a, self.hada_w1_b = self.new(rows, rank), self.new(rank, self.columns)
            self.hada_w2_a, self.hada_w2_b = self.new(rows, rank), self.new(rank, self.columns, zero=zero)

    def describe(self) -> str:
        return f"LoHa, rank {self.rank}, scaling {self.scaling:g}"

    @property
    def thin(self) -> bool:
        """Whether multiplying by the thin matrices is less work than by the dense change."""
        grouped = self.layer.conv is not None and self.layer.conv.groups > 1
        sizes = (self.layer.out_features, self.columns)
        return not grouped and self.rank**2 * sum(sizes) < prod(sizes)

    def pairs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A1 [O, R], B1 [R, K], A2 [O, R], B2 [R, K]."""
        a1, b1, a2, b2 = (each.weight for each in (self.hada_w1_a, self.hada_w1_b, self.hada_w2_a, self.hada_w2_b))
        if not self.effective:
            return a1, b1, a2, b2
        return a1.T, bent(self.hada_t1.weight, b1).flatten(1), a2.T, bent(self.hada_t2.weight, b2).flatten(1)

    def thin_factors(self) -> tuple[Tensor, Tensor]:
        """The change of the weight as A [O, R^2] times B [R^2, K]."""
        a1_OR, b1_RK, a2_OR, b2_RK = self.pairs()
        return (a1_OR[:, :, None] * a2_OR[:, None]).flatten(1), (b1_RK[:, None] * b2_RK[None]).flatten(0, 1)

    def low_rank(self, weight: BaseWeight) -> LowRank | None:
        if self.layer.conv is not None or not self.thin or self.drops:
            return None
        if torch.is_grad_enabled():
            a_OS, b_SK = self.thin_factors()
        else:
            a_OS, b_SK = self._thin.get(list(self.parameters()), self.thin_factors)
        return LowRank(b_SK, a_OS, self.scaling)

    def update(self, x: Tensor) -> Tensor:
        geometry = self.layer.conv
        if not self.thin:
            dense = self.change().to(x.dtype)
            return functional.linear(x, dense) if geometry is None else convolve(x, dense, geometry)
        a_OS, b_SK = (factor.to(x.dtype) for factor in self.thin_factors())
        if geometry is None:
            return functional.linear(functional.linear(x, b_SK), a_OS)
        return mix_channels(convolve(x, b_SK.unflatten(1, (-1, *geometry.kernel_size)), geometry), a_OS, geometry)

    def change(self) -> Tensor:
        a1_OR, b1_RK, a2_OR, b2_RK = self.pairs()
        dense_OK = (a1_OR @ b1_RK) * (a2_OR @ b2_RK)
        return dense_OK if self.layer.conv is None else dense_OK.unflatten(1, (-1, *self.layer.conv.kernel_size))


class LoHa(SiteMethod[LoHaConfig]):
    """Low-rank Hadamard product."""

    config_class = LoHaConfig
    recipe_targets = "all-linear"

    def site(self, config: LoHaConfig, layer: LayerSpec, float32: bool, shared: nn.Module | None) -> Site:
        return LoHaSite(config, layer, adapter_dtype(layer, float32))

    def default_targets(self, model_type: str) -> list[str] | str | None:
        return LORA_TARGETS.get(model_type)


methods.add("loha", LoHa())
