"""LoKr: the change of the weight is a Kronecker product, W1 [P, Q] (x) W2 [U, V], with O = P U and K = Q V.

x, folded to [Q, V], is multiplied by W2 and then by W1, which costs Q V U + P Q U multiplications a token instead of
P Q U V, and no matrix of the weight's size: 0.2 M instead of 4.2 M on a 2048 x 2048 layer, 0.04 M where W2 is itself a
product of rank 8. For convolutions the folded axis Q runs through as part of the batch.
Source: LyCORIS, arXiv 2309.14859, section 3; the factorization of sizes is LyCORIS's.
"""

from dataclasses import dataclass
from math import isqrt, prod
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from lorasmith.errors import AttachError
from lorasmith.methods.convolution import convolve
from lorasmith.methods.layer import LayerSpec
from lorasmith.methods.lycoris import LycorisConfig, LycorisSite, bent, kernel_axes
from lorasmith.methods.method import SiteMethod
from lorasmith.methods.registry import methods
from lorasmith.methods.site import Site, Vector, adapter_dtype
from lorasmith.models.families import LORA_TARGETS


@dataclass
class LoKrConfig(LycorisConfig):
    """PEFT's fields and defaults.

    decompose_factor is what the sizes are split by, -1 for near their roots; decompose_both makes W1 a product of low
    rank too; rank_dropout_scale divides by the share of rows that is left. init_weights starts with W1 = 0 (True), with
    W2 = 0 ("lycoris"), or anywhere (False). Raises AttachError for another factor or start.
    """

    METHOD: ClassVar[str] = "LOKR"

    decompose_both: bool = False
    decompose_factor: int = -1
    rank_dropout_scale: bool = False
    init_weights: bool | Literal["lycoris"] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decompose_factor != -1 and self.decompose_factor < 1:
            raise AttachError(f"decompose_factor={self.decompose_factor} must be positive, or -1 for the root")
        if self.init_weights not in (True, False, "lycoris"):
            raise AttachError(f"init_weights={self.init_weights!r} is not one of True, False, 'lycoris'")


def factorization(size: int, factor: int) -> tuple[int, int]:
    """size as a product: factor and the rest where it divides, else the largest divisor up to factor and the root."""
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    most = isqrt(size) if factor == -1 else min(factor, isqrt(size))
    first = next(divisor for divisor in range(most, 0, -1) if size % divisor == 0)
    return first, size // first


class LoKrSite(LycorisSite):
    """W1 and W2, each whole or, where the rank is below half its larger side, a product of that rank."""

    lokr_w1: Vector | None
    lokr_w2: Vector | None
    lokr_t2: Vector | None

    def __init__(self, config: LoKrConfig, layer: LayerSpec, dtype: torch.dtype) -> None:
        super().__init__(config, layer, dtype, scale_rows=config.rank_dropout_scale)
        kernel = kernel_axes(layer, "LoKr")
        groups = 1 if layer.conv is None else layer.conv.groups
        # P, U of the output; Q, V of the input
        self.p, self.u = factorization(layer.out_features, config.decompose_factor)
        self.q, self.v = factorization(layer.in_features // groups, config.decompose_factor)
        self._make_first(config)
        self._make_second(config, kernel)
        # with a whole W2 beside a Conv1d PEFT's files hold W2 (x) W1
        self.swapped = len(kernel) == 1 and self.lokr_w2 is not None

    def _make_first(self, config: LoKrConfig) -> None:
        zero = config.init_weights is True
        split = config.decompose_both and self.rank < max(self.p, self.q) / 2
        self.lokr_w1 = None if split else self.new(self.p, self.q, zero=zero)
        if split:
            self.lokr_w1_a = self.new(self.p, self.rank, zero=zero)
            self.lokr_w1_b = self.new(self.rank, self.q)

    def _make_second(self, config: LoKrConfig, kernel: tuple[int, ...]) -> None:
        zero = config.init_weights == "lycoris"
        split = self.rank < max(self.u, self.v) / 2
        effective = split and config.use_effective_conv2d and prod(kernel) > 1
        self.lokr_w2 = None if split else self.new(self.u, self.v, *kernel, zero=zero)
        self.lokr_t2 = None
        if effective:
            self.lokr_t2 = self.new(self.rank, self.rank, *kernel, *(1 for _ in range(2 - len(kernel))))
            self.lokr_w2_a = self.new(self.rank, self.u)
            self.lokr_w2_b = self.new(self.rank, self.v, zero=zero)
        elif split:
            self.lokr_w2_a = self.new(self.u, self.rank)
            self.lokr_w2_b = self.new(self.rank, self.v * prod(kernel), zero=zero)

    def describe(self) -> str:
        return f"LoKr, {self.p}x{self.q} (x) {self.u}x{self.v}, rank {self.rank}, scaling {self.scaling:g}"

    def first(self) -> Tensor:
        """W1 [P, Q]."""
        return self.lokr_w1_a.weight @ self.lokr_w1_b.weight if self.lokr_w1 is None else self.lokr_w1.weight

    def second(self) -> Tensor:
        """W2 [U, V], with the kernel's axes behind."""
        kernel = kernel_axes(self.layer, "LoKr")
        if self.lokr_w2 is not None:
            return self.lokr_w2.weight
        if self.lokr_t2 is not None:
            core = bent(self.lokr_t2.weight, self.lokr_w2_b.weight)
            return torch.einsum("ru,r...->u...", self.lokr_w2_a.weight, core).reshape(self.u, self.v, *kernel)
        return (self.lokr_w2_a.weight @ self.lokr_w2_b.weight).reshape(self.u, self.v, *kernel)

    def update(self, x: Tensor) -> Tensor:
        geometry = self.layer.conv
        if geometry is None:
            return self._linear(x)
        if geometry.groups > 1 or self.swapped:
            return convolve(x, self.change().to(x.dtype), geometry)
        axis = -1 - len(geometry.kernel_size)
        # x_QV: channels as [Q, V]; what stands before V is the batch
        x_QV = x.unflatten(axis, (self.q, self.v))
        h_QU = convolve(x_QV.flatten(0, axis - 1), self.second().to(x.dtype), geometry)
        h_QU = h_QU.unflatten(0, x_QV.shape[:axis])
        h_UQ = h_QU.movedim(axis - 1, -1)
        return _times(h_UQ, self.first().to(x.dtype)).movedim(-1, axis - 1).flatten(axis - 1, axis)

    def _linear(self, x: Tensor) -> Tensor:
        # the narrowest order: through the rank of a split W2 where there is one
        x_QV = x.unflatten(-1, (self.q, self.v))
        w1_PQ = self.first().to(x.dtype)
        if self.lokr_w2 is None:
            h_QR = _times(x_QV, self.lokr_w2_b.weight.to(x.dtype))
            h_PR = _times(h_QR.mT, w1_PQ).mT
            return _times(h_PR, self.lokr_w2_a.weight.to(x.dtype)).flatten(-2)
        h_QU = _times(x_QV, self.lokr_w2.weight.to(x.dtype))
        return _times(h_QU.mT, w1_PQ).mT.flatten(-2)

    def change(self) -> Tensor:
        first, second = self.first(), self.second()
        first = first.reshape(*first.shape, *(1 for _ in second.shape[2:]))
        return torch.kron(second, first) if self.swapped else torch.kron(first, second.contiguous())


def _times(x: Tensor, w: Tensor) -> Tensor:
    """x W^T of x [..., K] and W [O, K] as one product; in PyTorch's own way the bits depend on whether W trains."""
    return (x.reshape(-1, x.shape[-1]) @ w.T).unflatten(0, x.shape[:-1])


class LoKr(SiteMethod[LoKrConfig]):
    """Low-rank Kronecker product."""

    config_class = LoKrConfig
    recipe_targets = "all-linear"

    def site(self, config: LoKrConfig, layer: LayerSpec, float32: bool, shared: nn.Module | None) -> Site:
        return LoKrSite(config, layer, adapter_dtype(layer, float32))

    def default_targets(self, model_type: str) -> list[str] | str | None:
        return LORA_TARGETS.get(model_type)


methods.add("lokr", LoKr())
