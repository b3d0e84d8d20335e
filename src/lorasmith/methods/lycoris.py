"""What LoHa and LoKr share, the methods of the library LyCORIS: settings, dropouts, and how an update is applied.

A site's change of the weight is a product of small tensors. It is made dense for merging; forward multiplies by the
small tensors in turn wherever that is less work. Source: LyCORIS, arXiv 2309.14859, section 3.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch._guards import active_fake_mode

from lorasmith.errors import AttachError
from lorasmith.methods.config import LayeredConfig
from lorasmith.methods.layer import LayerSpec
from lorasmith.methods.matching import patterned
from lorasmith.methods.site import BaseWeight, Site, Vector
from lorasmith.ops.precision import product_dtype


@dataclass
class LycorisConfig(LayeredConfig):
    """Fields that LoHa and LoKr have in common, PEFT's, with its defaults.

    rank_dropout leaves out rows of the change of the weight while training, module_dropout the whole change.
    Raises AttachError for a rank below 1 and for a dropout outside 0 to 1.
    """

    METHOD: ClassVar[str]

    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    r: int = 8
    alpha: float = 8
    rank_dropout: float = 0.0
    module_dropout: float = 0.0
    use_effective_conv2d: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if min([self.r, *self.rank_pattern.values()]) < 1:
            raise AttachError(f"r={self.r}, rank_pattern={self.rank_pattern}: a rank must be at least 1")
        for name in ("rank_dropout", "module_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise AttachError(f"{name}={getattr(self, name)} must lie in [0, 1)")

    @property
    def patterns(self) -> dict[str, Mapping[str, float]]:
        return {"rank_pattern": self.rank_pattern, "alpha_pattern": self.alpha_pattern}

    def rank_of(self, path: str) -> int:
        """Rank of the module at path."""
        return patterned(self.rank_pattern, path, self.r)

    def scaling_of(self, path: str) -> float:
        """alpha / rank of the module at path."""
        return patterned(self.alpha_pattern, path, self.alpha) / self.rank_of(path)


class LycorisSite(Site):
    """A change of the weight by a product of small tensors, each a Vector under its name in files."""

    def __init__(self, config: LycorisConfig, layer: LayerSpec, dtype: torch.dtype, scale_rows: bool) -> None:
        super().__init__(layer)
        self.rank = config.rank_of(layer.path)
        self.scaling = config.scaling_of(layer.path)
        self.dtype = dtype
        rows, whole = config.rank_dropout, config.module_dropout
        self.row_dropout = RowDropout(rows, scale_rows) if rows else nn.Identity()
        self.module_dropout = ModuleDropout(whole) if whole else nn.Identity()

    def new(self, *shape: int, zero: bool = False) -> Vector:
        """A tensor of this shape, zero or Kaiming."""
        value = torch.zeros(shape, device=self.layer.device, dtype=self.dtype)
        if not zero:
            nn.init.kaiming_uniform_(value, a=math.sqrt(5))
        return Vector(value)

    @abstractmethod
    def update(self, x: Tensor) -> Tensor:
        """What the change of the weight adds to the output for x, without the scaling, in the type of x."""

    @abstractmethod
    def change(self) -> Tensor:
        """The change of the weight [out, in, ...], dense, without the scaling."""

    @property
    def drops(self) -> bool:
        """Whether a dropout acts now."""
        dropouts = (self.row_dropout, self.module_dropout)
        return any(dropout.training for dropout in dropouts if not isinstance(dropout, nn.Identity))

    def after(self, x: Tensor, y: Tensor, weight: BaseWeight) -> Tensor:
        if isinstance(self.module_dropout, ModuleDropout) and self.module_dropout.drops():
            return y
        update = self.update(x.to(product_dtype(x.dtype, x.device)))
        axis = -1 if self.layer.conv is None else -1 - len(self.layer.conv.kernel_size)
        if isinstance(self.row_dropout, RowDropout):
            update = self.row_dropout(update, axis)
        return y + (self.scaling * update).to(y.dtype)

    def refuses_merge(self) -> str | None:
        return None

    @torch.no_grad()
    def delta(self, weight: Tensor) -> Tensor:
        return (self.scaling * self.change().float()).reshape(weight.shape).to(weight.dtype)

    def file_keys(self) -> dict[str, str]:
        return {name: name.removesuffix(".weight") for name, _ in self.named_parameters()}


class RowDropout(nn.Module):
    """Leaves out rows of a change of the weight while training: features of the update, the same for all tokens.

    scale divides by the share that is left, whatever it is, as PEFT does.
    """

    def __init__(self, p: float, scale: bool) -> None:
        super().__init__()
        self.p, self.scale = p, scale

    def forward(self, update: Tensor, axis: int) -> Tensor:
        """update without the dropped features along axis."""
        if not self.training:
            return update
        kept = (torch.rand(update.shape[axis]) > self.p).to(update)
        if self.scale:
            # where none is left, zero by anything stays zero
            kept = kept / kept.mean().clamp_min(1 / kept.numel())
        return update * kept.reshape([-1 if i == axis % update.dim() else 1 for i in range(update.dim())])

    def extra_repr(self) -> str:
        return f"p={self.p}"


class ModuleDropout(nn.Module):
    """Leaves out a whole update while training."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def drops(self) -> bool:
        """Whether the update is left out this time."""
        # a memory plan runs on tensors without values, and counts the update
        if not self.training or active_fake_mode() is not None:
            return False
        return not bool(torch.rand(1) > self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def kernel_axes(layer: LayerSpec, method: str) -> tuple[int, ...]:
    """The kernel's sizes of a convolution, () of a linear layer; AttachError for what LoHa and LoKr do not serve."""
    if layer.kind == "embedding" or (layer.conv is not None and len(layer.conv.kernel_size) > 2):
        raise AttachError(f"{layer.path}: {method} serves linear layers, Conv1d and Conv2d; exclude this module")
    return () if layer.conv is None else layer.conv.kernel_size


def bent(core: Tensor, inner: Tensor) -> Tensor:
    """core [R, S, ...] with its second axis led to that of inner [S, in]: [R, in, ...]."""
    return torch.einsum("rs...,si->ri...", core, inner)
