"""OFT: a layer's input is turned, block by block, by orthogonal matrices R before the frozen weight: y = (x R) W^T.

R = (I - Q)(I + Q)^-1 (Cayley) of a skew-symmetric Q keeps the angles between the weight's rows; only Q trains, its
upper triangle as oft_R.weight [blocks, n (n - 1) / 2]. By default the inverse is a Neumann series, a polynomial in Q.
Turning the input costs n multiplications an input feature; the weight is never made dense for it (a convolution's is).
Source: OFT, arXiv 2306.07280, section 3; turning the input, and the series: OFTv2, arXiv 2506.19847, section 4.
"""

import logging
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

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

log = logging.getLogger(__name__)

# PEFT reads the series as it is today from this version on, and asks a file for it
_SERIES_SINCE = (0, 18, 0)


@dataclass
class OFTConfig(LayeredConfig):
    """PEFT's fields and defaults. Either the number of blocks r or their size is given, the other is 0.

    module_dropout leaves out that share of a layer's blocks while training; coft keeps Q within eps of zero;
    block_share turns all blocks of a layer alike. bias trains biases of the base too: "none", "all", or "oft_only" for
    the adapted modules. Raises AttachError for both or neither of r and oft_block_size, and for values out of range.
    """

    METHOD: ClassVar[str] = "OFT"

    r: int = 0
    oft_block_size: int = 32
    module_dropout: float = 0.0
    fan_in_fan_out: bool = False
    bias: Literal["none", "all", "oft_only"] = "none"
    init_weights: bool = True
    coft: bool = False
    eps: float = 6e-5
    block_share: bool = False
    use_cayley_neumann: bool = True
    num_cayley_neumann_terms: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.r, self.oft_block_size) != 0 or max(self.r, self.oft_block_size) < 1:
            raise AttachError(
                f"r={self.r}, oft_block_size={self.oft_block_size}: give one of the two and set the other to 0"
            )
        if not 0 <= self.module_dropout < 1:
            raise AttachError(f"module_dropout={self.module_dropout} must lie in [0, 1)")
        if self.bias not in ("none", "all", "oft_only"):
            raise AttachError(f"bias={self.bias!r} is not one of none, all, oft_only")
        if self.num_cayley_neumann_terms < 2:
            raise AttachError(
                f"num_cayley_neumann_terms={self.num_cayley_neumann_terms} must be at least 2, or nothing is turned"
            )

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"peft_version": ".".join(map(str, _SERIES_SINCE))}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        config = super().from_dict(values)
        if config.use_cayley_neumann and _version(str(values.get("peft_version") or "0")) < _SERIES_SINCE:
            log.warning("OFT: the file is from before PEFT 0.18, whose series was another; its logits may differ")
        return config

    def blocks_of(self, path: str, features: int) -> tuple[int, int]:
        """(blocks, size of a block) for a layer of that many features; what does not divide them gives way, told."""
        asked = self.r or self.oft_block_size
        taken = _nearest_divisor(features, asked)
        if taken != asked:
            field = "r" if self.r else "oft_block_size"
            log.warning("%s: %s=%d does not divide its %d features; taken is %d", path, field, asked, features, taken)
        return (taken, features // taken) if self.r else (features // taken, taken)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.partition("@")[0].split(".") if part.isdigit())


def _nearest_divisor(size: int, wanted: int) -> int:
    divisors = [divisor for divisor in range(1, size + 1) if size % divisor == 0]
    # of two as near, the smaller
    return size if wanted >= size else min(divisors, key=lambda divisor: (abs(divisor - wanted), divisor))


class OFTSite(Site):
    """The rotation of a layer's features, in blocks."""

    # the child that holds the parameters, by its name in files
    slot = "oft_R"

    def __init__(self, config: OFTConfig, layer: LayerSpec, dtype: torch.dtype, features: int) -> None:
        super().__init__(layer)
        self.config = config
        self.blocks, self.size = config.blocks_of(layer.path, features)
        stored = 1 if config.block_share else self.blocks
        value = torch.zeros(stored, self.size * (self.size - 1) // 2, device=layer.device, dtype=dtype)
        self.add_module(self.slot, Vector(value if config.init_weights else nn.init.normal_(value, std=0.1)))
        self.oft_dropout = BlockDropout(config.module_dropout) if config.module_dropout else nn.Identity()

    def describe(self) -> str:
        return f"OFT, {self.blocks} blocks of {self.size}"

    def refuses_merge(self) -> str | None:
        return None

    def rotations(self) -> Tensor:
        """R [blocks, n, n], or [1, n, n] where all blocks are turned alike."""
        stored: Tensor = self.get_submodule(self.slot).get_parameter("weight")
        if self.config.coft:
            stored = self._constrained(stored)
        skew = _skew(stored, self.size)
        exact = not self.config.use_cayley_neumann
        return self.oft_dropout(cayley(skew) if exact else _series(skew, self.config.num_cayley_neumann_terms))

    def _constrained(self, stored: Tensor) -> Tensor:
        """Q within its bound; a trained one is put there, which is the projected gradient step that COFT asks for."""
        trains = torch.is_grad_enabled() and stored.requires_grad
        with torch.no_grad():
            # the norm of the whole matrix, which holds every entry twice
            norms = stored.norm(dim=1, keepdim=True) * math.sqrt(2)
            bound = self.config.eps / math.sqrt(stored.shape[0])
            value = torch.where(norms <= bound, stored, stored * (bound / norms))
            return stored.copy_(value) if trains else value


class OFTLinear(OFTSite):
    """The input of a linear layer is turned."""

    def __init__(self, config: OFTConfig, layer: LayerSpec, dtype: torch.dtype) -> None:
        super().__init__(config, layer, dtype, layer.in_features)

    def before(self, x: Tensor) -> Tensor:
        return turned(x, self.rotations())

    @torch.no_grad()
    def delta(self, weight: Tensor) -> Tensor:
        return turned(weight, self.rotations().mT) - weight


class OFTConv(OFTSite):
    """The patches under a kernel are turned, which is the kernel turned the other way."""

    def __init__(self, config: OFTConfig, layer: LayerSpec, dtype: torch.dtype) -> None:
        geometry = layer.conv
        assert geometry is not None
        if geometry.groups > 1:
            raise AttachError(f"{layer.path}: OFT does not serve convolutions with groups; exclude this module")
        super().__init__(config, layer, dtype, layer.in_features * math.prod(geometry.kernel_size))

    def before(self, x: Tensor) -> Tensor:
        # as it is; that the input's side is named makes merging turn the base's kernel before others add to it
        return x

    def after(self, x: Tensor, y: Tensor, weight: BaseWeight) -> Tensor:
        assert self.layer.conv is not None
        kernel = weight()
        change = turned(kernel.flatten(1), self.rotations().mT).reshape(kernel.shape) - kernel
        return y + convolve(x, change.to(x.dtype), self.layer.conv)

    @torch.no_grad()
    def delta(self, weight: Tensor) -> Tensor:
        return turned(weight.flatten(1), self.rotations().mT).reshape(weight.shape) - weight


class OFTEmbedding(OFTSite):
    """The rows that an embedding gives are turned."""

    slot = "oft_embedding_R"

    def __init__(self, config: OFTConfig, layer: LayerSpec, dtype: torch.dtype) -> None:
        super().__init__(config, layer, dtype, layer.out_features)

    def after(self, x: Tensor, y: Tensor, weight: BaseWeight) -> Tensor:
        return turned(y, self.rotations())

    @torch.no_grad()
    def delta(self, weight: Tensor) -> Tensor:
        return turned(weight, self.rotations()) - weight


class BlockDropout(nn.Module):
    """Sets a share p of a layer's rotations, rounded down to whole blocks, to the identity while training."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, rotations: Tensor) -> Tensor:
        """rotations [blocks, n, n] with some of them the identity; one that all blocks share stays."""
        blocks = rotations.shape[0]
        left_out = int(self.p * blocks)
        if not self.training or blocks == 1 or left_out == 0:
            return rotations
        chosen = torch.randperm(blocks)[:left_out].to(rotations.device)
        mask = torch.zeros(blocks, 1, 1, dtype=torch.bool, device=rotations.device).index_fill(0, chosen, True)
        return torch.where(mask, torch.eye(rotations.shape[1]).to(rotations), rotations)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def _skew(triangle: Tensor, size: int) -> Tensor:
    """The skew-symmetric matrices [blocks, n, n] of upper triangles [blocks, n (n - 1) / 2], row by row."""
    rows, columns = torch.triu_indices(size, size, 1, device=triangle.device)
    upper = triangle.new_zeros(triangle.shape[0], size, size)
    upper[:, rows, columns] = triangle
    return upper - upper.mT


def _series(skew: Tensor, terms: int) -> Tensor:
    """I + 2 Q + 2 Q^2 + ... with the last power once: the Neumann series of the Cayley transform of -Q, cut off.

    PEFT counts the terms so that 3 and 4 are the same, up to Q^3, and 2 ends with 2 Q.
    """
    result = torch.eye(skew.shape[-1], device=skew.device, dtype=skew.dtype) + 2 * skew
    if terms == 2:
        return result
    power, highest = skew, max(3, terms - 1)
    for exponent in range(2, highest + 1):
        power = power @ skew
        result = result + (power if exponent == highest else 2 * power)
    return result


class OFT(SiteMethod[OFTConfig]):
    """Orthogonal fine-tuning."""

    config_class = OFTConfig
    recipe_targets = "all-linear"

    def site(self, config: OFTConfig, layer: LayerSpec, float32: bool, shared: nn.Module | None) -> Site:
        shapes: dict[str, type[OFTLinear | OFTConv | OFTEmbedding]]
        shapes = {"linear": OFTLinear, "conv": OFTConv, "embedding": OFTEmbedding}
        return shapes[layer.kind](config, layer, adapter_dtype(layer, float32))

    def default_targets(self, model_type: str) -> list[str] | str | None:
        return LORA_TARGETS.get(model_type)

    def biases(self, config: OFTConfig) -> str:
        return "lora_only" if config.bias == "oft_only" else config.bias


methods.add("oft", OFT())
