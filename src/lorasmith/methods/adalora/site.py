"""AdaLoRA at one module: the triplets (a row of A, a value of E, a column of B), and which of them are kept."""

from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lorasmith.errors import AttachError
from lorasmith.methods.adalora.config import AdaLoraConfig
from lorasmith.methods.convolution import convolve, mix_channels
from lorasmith.methods.layer import LayerSpec
from lorasmith.methods.site import BaseWeight, Site, Vector
from lorasmith.ops import LowRank
from lorasmith.ops.precision import product_dtype


class AdaLoraSite(Site):
    """A [rank, K], E [rank, 1], B [out, rank]; K is in_features, times the kernel's size for a convolution.

    kept says which triplets the last allocation left; a file holds only those.
    """

    def __init__(self, config: AdaLoraConfig, layer: LayerSpec, dtype: torch.dtype, columns: int) -> None:
        super().__init__(layer)
        # where each of the init_r ranks that a file speaks of is here
        self.pattern = list(config.kept_at(layer.path))
        self.rank = sum(self.pattern)
        self.kept = [True] * self.rank
        alpha = config.lora_alpha if config.lora_alpha > 0 else self.rank
        # by the rank at the start, whatever is left of it, so that an allocation moves nothing that it keeps
        self.scaling = alpha / (config.init_r + 1e-5)
        self.lora_dropout = nn.Dropout(config.lora_dropout) if config.lora_dropout else nn.Identity()
        options: dict[str, Any] = {"device": layer.device, "dtype": dtype}
        deviation = 0.02 if config.init_lora_weights else 1.0
        values = torch.zeros if config.init_lora_weights else torch.randn
        self.lora_A = Vector(torch.randn(self.rank, columns, **options) * deviation)
        self.lora_E = Vector(values(self.rank, 1, **options))
        self.lora_B = Vector(torch.randn(layer.out_features, self.rank, **options) * deviation)

    def describe(self) -> str:
        return f"AdaLoRA, rank {sum(self.kept)} of {self.rank}, scaling {self.scaling:g}"

    @torch.no_grad()
    def keep(self, kept: list[bool]) -> None:
        """Set the values of the triplets that are not kept to zero; kept has a truth value a rank."""
        self.kept = kept
        self.lora_E.weight.masked_fill_(~self._mask()[:, None], 0.0)

    def _mask(self) -> Tensor:
        return torch.tensor(self.kept, dtype=torch.bool, device=self.lora_E.weight.device)

    def kept_pattern(self) -> list[bool]:
        """What is kept of the init_r ranks."""
        kept = iter(self.kept)
        return [had and next(kept) for had in self.pattern]

    def scaled_b(self) -> Tensor:
        """B with the values on its columns: [out, rank]."""
        return self.lora_B.weight * self.lora_E.weight.T

    def refuses_merge(self) -> str | None:
        return None

    @torch.no_grad()
    def delta(self, weight: Tensor) -> Tensor:
        product = self.scaled_b().float() @ self.lora_A.weight.float()
        return (self.scaling * product).reshape(weight.shape).to(weight.dtype)

    def file_keys(self) -> dict[str, str]:
        return {f"{name}.weight": name for name in ("lora_A", "lora_E", "lora_B")}

    def saved(self, key: str, value: Tensor) -> Tensor:
        return value[:, self._mask()] if key == "lora_B" else value[self._mask()]

    def restored(self, key: str, value: Tensor) -> Tensor:
        whole = self.get_parameter(f"{key}.weight").detach()
        axis = 1 if key == "lora_B" else 0
        if value.shape == whole.shape or value.shape[axis] != sum(self.kept):
            return value
        return whole.index_copy(axis, self._mask().nonzero().flatten(), value.to(whole))


class AdaLoraLinear(AdaLoraSite):
    """AdaLoRA beside a linear layer."""

    def __init__(self, config: AdaLoraConfig, layer: LayerSpec, dtype: torch.dtype) -> None:
        super().__init__(config, layer, dtype, layer.in_features)

    def low_rank(self, weight: BaseWeight) -> LowRank | None:
        if self.rank == 0:
            return None
        dropout = self.lora_dropout.p if isinstance(self.lora_dropout, nn.Dropout) and self.lora_dropout.training else 0
        return LowRank(self.lora_A.weight, self.scaled_b(), self.scaling, dropout)

    def after(self, x: Tensor, y: Tensor, weight: BaseWeight) -> Tensor:
        wide = product_dtype(x.dtype, x.device)
        h = functional.linear(self.lora_dropout(x).to(wide), self.lora_A.weight.to(wide)) * self.scaling
        return y + functional.linear(h, self.scaled_b().to(wide)).to(y.dtype)


class AdaLoraConv(AdaLoraSite):
    """AdaLoRA beside a convolution: A as a kernel of rank channels, B as one of size 1."""

    def __init__(self, config: AdaLoraConfig, layer: LayerSpec, dtype: torch.dtype) -> None:
        geometry = layer.conv
        assert geometry is not None
        if geometry.groups > 1:
            raise AttachError(f"{layer.path}: AdaLoRA does not serve convolutions with groups; exclude this module")
        super().__init__(config, layer, dtype, layer.in_features * prod(geometry.kernel_size))
        self.geometry = geometry

    def after(self, x: Tensor, y: Tensor, weight: BaseWeight) -> Tensor:
        wide = product_dtype(x.dtype, x.device)
        kernel = self.lora_A.weight.to(wide).unflatten(1, (-1, *self.geometry.kernel_size))
        h = convolve(self.lora_dropout(x).to(wide), kernel, self.geometry) * self.scaling
        return y + mix_channels(h, self.scaled_b().to(wide), self.geometry).to(y.dtype)
