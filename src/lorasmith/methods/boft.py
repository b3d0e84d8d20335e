"""BOFT: a layer's input is turned by a product of block-diagonal rotations, each of permuted features, and every output
scaled: y = s * ((x R_m ... R_1) W^T) + b, R_i = P_i diag(blocks) P_i^T.

With m butterfly factors of blocks of n, groups of 2^(m-1) n features mix, for m n multiplications a feature. Blocks are
Cayley transforms of the skew-symmetric halves of boft_R [m, blocks, n, n]; s is boft_s. The input is turned by moving
features and multiplying blocks; no matrix of its width is made. Source: arXiv 2311.06243, section 4.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lorasmith.errors import AttachError
from lorasmith.methods.config import LayeredConfig
from lorasmith.methods.convolution import convolve
from lorasmith.methods.layer import LayerSpec
from lorasmith.methods.method import SiteMethod
from lorasmith.methods.registry import methods
from lorasmith.methods.rotation import cayley, turned
from lorasmith.methods.site import BaseWeight, Site, Vector, adapter_dtype
from lorasmith.models.families import LORA_TARGETS


@dataclass
class BOFTConfig(LayeredConfig):
    """PEFT's fields and defaults. Either the size of blocks or their number is given, the other is 0.

    boft_dropout leaves out that share of the blocks of one factor while training. bias trains biases of the base too:
    "none", "all", or "boft_only" for the adapted modules. Raises AttachError for both or neither of size and number,
    and for values out of range.
    """

    METHOD: ClassVar[str] = "BOFT"

    boft_block_size: int = 4
    boft_block_num: int = 0
    boft_n_butterfly_factor: int = 1
    boft_dropout: float = 0.0
    fan_in_fan_out: bool = False
    bias: Literal["none", "all", "boft_only"] = "none"
    init_weights: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        size, number = self.boft_block_size, self.boft_block_num
        if min(size, number) != 0 or max(size, number) < 1:
            raise AttachError(f"boft_block_size={size}, boft_block_num={number}: give one and set the other to 0")
        if self.boft_n_butterfly_factor < 1:
            raise AttachError(f"boft_n_butterfly_factor={self.boft_n_butterfly_factor} must be at least 1")
        if not 0 <= self.boft_dropout < 1:
            raise AttachError(f"boft_dropout={self.boft_dropout} must lie in [0, 1)")
        if self.bias not in ("none", "all", "boft_only"):
            raise AttachError(f"bias={self.bias!r} is not one of none, all, boft_only")

    def size_of(self, path: str, features: int) -> int:
        """The size of a block for a layer of that many features; AttachError where blocks or butterflies do not fit."""
        asked, factors = self.boft_block_size or self.boft_block_num, self.boft_n_butterfly_factor
        if features % asked:
            field = "boft_block_size" if self.boft_block_size else "boft_block_num"
            raise AttachError(f"{path}: {field}={asked} does not divide its {features} features; choose a divisor")
        size = self.boft_block_size or features // asked
        if factors > 1 and (size % 2 or features % (size * 2 ** (factors - 1))):
            raise AttachError(
                f"{path}: {factors} factors need blocks of an even size, not {size}, and {features} features "
                f"in groups of {size * 2 ** (factors - 1)}; choose another size or fewer factors"
            )
        return size


def butterfly(x: Tensor, size: int, factor: int) -> Tensor:
    """The features of x [..., features] in the order that factor number `factor` (from 0) gives back to its blocks'.

    Halves of blocks are dealt out: in groups of 2^(factor + 1) halves the even ones come first, then the odd ones. The
    first factor takes them as they are.
    """
    return x if factor == 0 else x.unflatten(-1, (-1, 2**factor, 2, size // 2)).transpose(-3, -2).flatten(-4)


def gathered(x: Tensor, size: int, factor: int) -> Tensor:
    """The features of x [..., features] in the order that the factor's blocks have: what butterfly does, undone."""
    return x if factor == 0 else x.unflatten(-1, (-1, 2, 2**factor, size // 2)).transpose(-3, -2).flatten(-4)


class BOFTSite(Site):
    """The rotations of a layer's features and the scales of its outputs."""

    def __init__(self, config: BOFTConfig, layer: LayerSpec, dtype: torch.dtype, features: int) -> None:
        super().__init__(layer)
        size, self.factors = config.size_of(layer.path, features), config.boft_n_butterfly_factor
        options: dict[str, Any] = {"device": layer.device, "dtype": dtype}
        rotations = torch.zeros(self.factors, features // size, size, size, **options)
        scales = torch.ones(layer.out_features, **options)
        if not config.init_weights:
            nn.init.normal_(rotations, std=0.1)
            nn.init.normal_(scales, mean=1.0, std=0.1)
        self.boft_R = Vector(rotations)
        self.boft_s = Vector(scales[:, None] if layer.conv is None else scales[None])
        self.boft_dropout = ButterflyDropout(config.boft_dropout) if config.boft_dropout else nn.Identity()

    def describe(self) -> str:
        return f"BOFT, {self.factors} factors of {self.boft_R.weight.shape[1]} blocks of {self.boft_R.weight.shape[2]}"

    def rotations(self) -> Tensor:
        """The blocks of all factors: [m, blocks, n, n]."""
        stored = self.boft_R.weight
        return self.boft_dropout(cayley(0.5 * (stored - stored.mT)))

    def turned_kernel(self, weight: Tensor) -> Tensor:
        """weight [out, features] that does what the turned input and the scaled output do."""
        # the transpose of a product turns its order round
        for factor, rotation in enumerate(self.rotations()):
            weight = _turned(weight, factor, rotation.mT)
        return weight * self.boft_s.weight.reshape(-1, 1).to(weight.dtype)

    def refuses_merge(self) -> str | None:
        return None

    @torch.no_grad()
    def delta(self, weight: Tensor) -> Tensor:
        return self.turned_kernel(weight.flatten(1)).reshape(weight.shape) - weight

    def file_keys(self) -> dict[str, str]:
        return {"boft_R.weight": "boft_R", "boft_s.weight": "boft_s"}

    def restored(self, key: str, value: Tensor) -> Tensor:
        # without its CUDA extension PEFT makes one factor, whatever the config says; the others turn nothing
        if key != "boft_R" or value.dim() != 4 or value.shape[0] != 1 or self.factors == 1:
            return value
        return torch.cat([value, value.new_zeros(self.factors - 1, *value.shape[1:])])


class BOFTLinear(BOFTSite):
    """The input of a linear layer is turned, its output scaled, without the bias."""

    def __init__(self, config: BOFTConfig, layer: LayerSpec, dtype: torch.dtype) -> None:
        super().__init__(config, layer, dtype, layer.in_features)

    def before(self, x: Tensor) -> Tensor:
        for factor, rotation in reversed(list(enumerate(self.rotations()))):
            x = _turned(x, factor, rotation)
        return x

    def after(self, x: Tensor, y: Tensor, weight: BaseWeight) -> Tensor:
        scale, bias = self.boft_s.weight.flatten(), weight.bias
        if bias is None:
            return (y * scale).to(y.dtype)
        return (y * scale + bias * (1 - scale)).to(y.dtype)


class BOFTConv(BOFTSite):
    """The patches under a kernel are turned, which is the kernel turned the other way."""

    def __init__(self, config: BOFTConfig, layer: LayerSpec, dtype: torch.dtype) -> None:
        geometry = layer.conv
        if geometry is None or geometry.groups > 1:
            raise AttachError(
                f"{layer.path}: BOFT serves linear layers and convolutions without groups; exclude this module"
            )
        super().__init__(config, layer, dtype, layer.in_features * math.prod(geometry.kernel_size))

    def before(self, x: Tensor) -> Tensor:
        # as it is; that the input's side is named makes merging turn the base's kernel before others add to it
        return x

    def after(self, x: Tensor, y: Tensor, weight: BaseWeight) -> Tensor:
        assert self.layer.conv is not None
        kernel = weight()
        change = self.turned_kernel(kernel.flatten(1)).reshape(kernel.shape) - kernel
        return y + convolve(x, change.to(x.dtype), self.layer.conv)


class ButterflyDropout(nn.Module):
    """Sets a share p of the blocks of one factor, chosen anew each time, to the identity while training."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, rotations: Tensor) -> Tensor:
        """rotations [m, blocks, n, n] with some blocks the identity."""
        if not self.training:
            return rotations
        factors, blocks, size, _ = rotations.shape
        of_factor = torch.arange(factors) == torch.randint(0, factors, (1,))
        of_block = torch.randperm(blocks) < int(self.p * blocks)
        left_out = (of_factor[:, None] & of_block)[..., None, None].to(rotations.device)
        return torch.where(left_out, torch.eye(size).to(rotations), rotations)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def _turned(x: Tensor, factor: int, rotation: Tensor) -> Tensor:
    """x [..., features] with the factor's blocks of features turned by rotation [blocks, n, n]."""
    size = rotation.shape[-1]
    return butterfly(turned(gathered(x, size, factor), rotation), size, factor)


class BOFT(SiteMethod[BOFTConfig]):
    """Orthogonal butterfly fine-tuning."""

    config_class = BOFTConfig
    recipe_targets = "all-linear"

    def site(self, config: BOFTConfig, layer: LayerSpec, float32: bool, shared: nn.Module | None) -> Site:
        shape = BOFTLinear if layer.kind == "linear" else BOFTConv
        return shape(config, layer, adapter_dtype(layer, float32))

    def default_targets(self, model_type: str) -> list[str] | str | None:
        return LORA_TARGETS.get(model_type)

    def biases(self, config: BOFTConfig) -> str:
        return "lora_only" if config.bias == "boft_only" else config.bias


methods.add("boft", BOFT())
