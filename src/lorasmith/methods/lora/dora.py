"""DoRA: the adapted weight's rows get trained lengths. y = m / |W + s B A| * (x W^T + s drop(x) A^T B^T) + b.

|...| is the Euclidean length of each output's weights, and the magnitude m [out] starts as it is, so that the model's
function is unchanged. The length is a constant to the gradient. Dropout falls on the update alone.
Source: arXiv 2402.09353, equation 5; the constant length, section 4.3.

No dense W is needed for the length by rows (of W [out, K], B [out, rank], A [rank, K]):
|W + s B A|^2 = |W|^2 + 2 s diag(B (A W^T)) + s^2 diag(B (A A^T) B^T), of which |W|^2 is kept and the rest is thin.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from lorasmith.errors import AttachError
from lorasmith.methods.kept import Kept
from lorasmith.methods.lora.site import LoraSite
from lorasmith.methods.site import BaseWeight, FactorPair, Site, Vector
from lorasmith.ops import LowRank
from lorasmith.ops.precision import without_autocast

_MAGNITUDE_KEY = "lora_magnitude_vector"


class DoraSite(Site):
    """A LoRA update and the lengths of the rows of what it makes of the weight; its tensors are the update's and m."""

    def __init__(self, update: LoraSite, dtype: torch.dtype) -> None:
        super().__init__(update.layer)
        if update.layer.conv is not None and update.layer.conv.groups > 1:
            raise AttachError(f"{update.layer.path}: DoRA serves no convolution with groups; exclude this module")
        # in a tuple, so that it is no child: the children are its own, one step up, where PEFT has them
        self._update = (update,)
        for name, child in update.named_children():
            self.add_module(name, child)
        shape = [update.layer.out_features]
        if update.layer.conv is not None:
            shape = [1, *shape, *(1 for _ in update.layer.conv.kernel_size)]
        self.lora_magnitude_vector = Vector(torch.ones(shape, device=update.layer.device, dtype=dtype))
        self._squares: Kept[Tensor] = Kept()
        self._gains: Kept[Tensor] = Kept()
        self._lengths_to_merge: Tensor | None = None

    @property
    def update(self) -> LoraSite:
        """The update of the weight."""
        return self._update[0]

    def describe(self) -> str:
        return self.update.describe().replace("LoRA", "DoRA", 1)

    @torch.no_grad()
    def settle(self, weight: BaseWeight, fresh: bool) -> None:
        self.update.settle(weight, fresh)
        if fresh:
            magnitude = self.lora_magnitude_vector.weight
            magnitude.copy_(self._measured(weight).view_as(magnitude))

    def low_rank(self, weight: BaseWeight) -> LowRank | None:
        update = self.update.low_rank(weight)
        return None if update is None else replace(update, gain=self._gain(weight))

    def after(self, x: Tensor, y: Tensor, weight: BaseWeight) -> Tensor:
        gain = self._beside(y, self._gain(weight).to(y.dtype))
        if weight.bias is None:
            return gain * self.update.after(x, y, weight)
        bias = self._beside(y, weight.bias.to(y.dtype))
        return gain * self.update.after(x, y - bias, weight) + bias

    def factor_pairs(self) -> list[FactorPair]:
        return self.update.factor_pairs()

    def refuses_merge(self) -> str | None:
        return self.update.refuses_merge()

    def before_merge(self, weight: BaseWeight) -> None:
        self._lengths_to_merge = self._measured(weight)

    def delta(self, weight: Tensor) -> Tensor:
        changed = weight + self.update.delta(weight)
        lengths = self._lengths_to_merge
        if lengths is None:
            lengths = self.update.as_rows(changed).float().norm(dim=1)
        gain = (self._magnitude().detach() / _nonzero(lengths)).to(weight.dtype)
        # features are the columns of an embedding, and come first in all other weights
        axis = 1 if self.layer.kind == "embedding" else 0
        return changed * gain.view([-1 if i == axis else 1 for i in range(weight.dim())]) - weight

    def file_keys(self) -> dict[str, str]:
        return self.update.file_keys() | {"lora_magnitude_vector.weight": _MAGNITUDE_KEY}

    def exported(self) -> dict[str, Tensor]:
        return self.update.exported() | {_MAGNITUDE_KEY: self.lora_magnitude_vector.weight.detach()}

    @torch.no_grad()
    def take_exported_(self, tensors: Mapping[str, Tensor]) -> None:
        self.update.take_exported_(tensors)
        self.lora_magnitude_vector.weight.copy_(tensors[_MAGNITUDE_KEY])

    def _magnitude(self) -> Tensor:
        return self.lora_magnitude_vector.weight.flatten()

    def _beside(self, y: Tensor, values: Tensor) -> Tensor:
        """values [out] as they multiply y, whose channels stand before the spatial axes of a convolution."""
        return values if self.layer.conv is None else values.view(-1, *(1 for _ in self.layer.conv.kernel_size))

    def _gain(self, weight: BaseWeight) -> Tensor:
        """m / |W + s B A| [out], of which only m gets a gradient."""

        def divided() -> Tensor:
            return self._magnitude() / _nonzero(self._measured(weight))

        if torch.is_grad_enabled():
            # whoever trains may write to the tensors unseen
            self._gains.forget()
            return divided()
        return self._gains.get([*weight.stored(), *self.parameters(), *self.buffers()], divided, self.update.scaling)

    @torch.no_grad()
    def _measured(self, weight: BaseWeight) -> Tensor:
        """|W + s B A| by rows, f32 [out]."""
        a_RK, b_OR = (factor.float() for factor in self.update.factors())
        scaling = self.update.scaling
        with without_autocast(a_RK.device):
            squares_O = self._squares.get(
                weight.stored(), lambda: self.update.as_rows(weight()).float().square().sum(1)
            )
            crossed_OR = self.update.times(weight, a_RK).T
            added_OR = b_OR @ (a_RK @ a_RK.T)
            squares_O = squares_O + (b_OR * (2 * scaling * crossed_OR + scaling**2 * added_OR)).sum(1)
        # a row that the update nearly takes away can come out a rounding below zero
        return squares_O.clamp_min(0).sqrt()


def _nonzero(lengths: Tensor) -> Tensor:
    # an empty row has no direction, and stays empty whatever it is divided by
    return lengths.clamp_min(torch.finfo(lengths.dtype).tiny)
