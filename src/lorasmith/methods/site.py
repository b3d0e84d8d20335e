"""The contract of a method at one module, its site.

A site's tensors live in its child modules, so that the module that it sits on can register them under PEFT's names
(`q_proj.lora_A.default.weight`); a bare tensor is a Vector. The site never learns how the weight is stored: it is
handed a function that makes the dense matrix, and asks only where the mathematics needs it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from lorasmith.methods.layer import LayerSpec
from lorasmith.ops import LowRank
from lorasmith.quantized import Scheme


class BaseWeight(Protocol):
    """The frozen weight of the module that a site sits on, however it is stored."""

    def __call__(self, dtype: torch.dtype | None = None) -> Tensor:
        """The dense weight [out, in, ...] ([rows, width] of an embedding); made on every call where it is quantized.

        dtype is that of the result, by default the one in which the weight was loaded.
        """

    def times(self, rows: Tensor) -> Tensor:
        """rows W^T of rows [R, in] -> [R, out], without making W dense where the layer can do without. Linear only."""

    def stored(self) -> list[Tensor]:
        """The tensors that hold it: what is worked out from the weight holds as long as they do not change."""

    @property
    def bias(self) -> Tensor | None:
        """What the module adds to its output [out]."""

    @property
    def scheme(self) -> Scheme | None:
        """How the weight is quantized, None where it is dense."""

    def quantize(self, values: Tensor, scheme: Scheme) -> None:
        """Let the layer hold values [out, in] in f32, quantized, instead of its weight, for good. Linear only.

        Raises AttachError where another adapter stands on the weight.
        """


@dataclass(frozen=True)
class FactorPair:
    """The factors that train of an update s B A: a [R, ...] and b [O, R, ...], whose ranks belong together.

    Of a stack of E experts a is [E x R, ...], expert by expert, and b [O, R x E], rank by rank.
    """

    a: nn.Parameter
    b: nn.Parameter
    scaling: float
    experts: int = 1


class Site(nn.Module):
    """A method at one module. Subclasses override what their mathematics changes; the rest is the identity."""

    # whether files of an adapted embedding hold the base's whole embedding too, as PEFT's do
    keeps_base: ClassVar[bool] = True

    def __init__(self, layer: LayerSpec) -> None:
        super().__init__()
        self.layer = layer
        # whether it must see data before it acts (`begin_at_gradient`)
        self.needs_data = False
        # the site whose tensors this one shares, at a layer with the same weight; a tuple, since it is no child
        self.partners: tuple[Site, ...] = ()

    def describe(self) -> str:
        """The method and its sizes here, in a few words for print(model)."""
        return type(self).__name__

    def settle(self, weight: BaseWeight, fresh: bool) -> None:
        """Take from the base's weight what the site needs of it; fresh is False where its tensors are loaded next.

        Most sites need something only where they are new, and override begin. Of those that need it in both cases it
        must come out the same every time.
        """
        if fresh:
            self.begin(weight)

    def begin(self, weight: BaseWeight) -> None:
        """Take a start from the weight that the site is new at; not called where its tensors are about to be loaded."""

    def begin_at_gradient(self, weight: BaseWeight, gradient: Tensor) -> None:
        """Take the start from the base's weight and its gradient f32 [out, in], summed over data.

        Called where needs_data is True, which ends with it. Linear only.
        """
        raise NotImplementedError(f"{self.describe()} needs no data")

    def loaded(self) -> None:
        """Take notice of tensors that were just loaded."""

    def before(self, x: Tensor) -> Tensor:
        """The input that the module gets instead of x."""
        return x

    def after(self, x: Tensor, y: Tensor, weight: BaseWeight) -> Tensor:
        """The output instead of y; x is the module's own input, before any change."""
        return y

    def changed(self, weight: Tensor) -> Tensor:
        """What a module computes with instead of its bare parameter weight, with gradients; for sites on parameters."""
        raise NotImplementedError(f"{self.describe()} does not act on a bare parameter")

    def low_rank(self, weight: BaseWeight) -> LowRank | None:
        """The site's whole effect on a linear layer where it is an update of low rank, which then runs in one step."""
        return None

    def factor_pairs(self) -> list[FactorPair]:
        """The factors that optimizers made for LoRA tell apart; none where the site has no such pair."""
        return []

    def refuses_merge(self) -> str | None:
        """Why no change of the weight can have the site's effect; None where delta gives one."""
        return f"{self.describe()} is no change of a weight"

    def before_merge(self, weight: BaseWeight) -> None:
        """Take from the base's weight what delta needs to know of it; delta's own may hold other adapters already."""

    def delta(self, weight: Tensor) -> Tensor:
        """The change of weight [out, in, ...] that has the site's whole effect, in the type of weight.

        Raises NotImplementedError where refuses_merge says why.
        """
        raise NotImplementedError(self.refuses_merge())

    def grouped_delta(self) -> tuple[Tensor, int] | None:
        """(delta f32 [out, in / group], group) of a linear layer whose change is constant over groups of columns.

        Such a change merges into a weight whose blocks have zero points without being rounded. None for any other.
        """
        return None

    def delta_bias(self, bias: Tensor | None) -> Tensor | None:
        """The change of the bias [out] that merging asks for, None for none."""
        return None

    def file_keys(self) -> dict[str, str]:
        """Key in a PEFT file, behind the module's path, of each tensor of this site by its name here.

        A key that begins with "/" stands behind `base_model.` instead: a tensor that all sites share.
        """
        return {name: name for name, _ in self.named_parameters()}

    def file_tensors(self) -> dict[str, Tensor]:
        """The tensors that files hold, by their keys there (`file_keys`); views, to load into as well."""
        own = self.state_dict()
        return {key: own[name] for name, key in self.file_keys().items()}

    def is_older(self, tensors: Mapping[str, Tensor]) -> bool | None:
        """Whether tensors, by their keys in files, are in a layout that files had before; None where both fit."""
        return False

    def from_older(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """tensors, by their keys in files, out of the layout before; called only where a file has it."""
        return dict(tensors)

    def exported(self) -> dict[str, Tensor]:
        """The tensors that a file holds for any program, by its keys: those of file_keys, unless it says otherwise."""
        return {key: self.saved(key, value) for key, value in self.file_tensors().items()}

    def take_exported_(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over tensors as `exported` gives them."""
        for key, place in self.file_tensors().items():
            place.copy_(self.restored(key, tensors[key]))

    def saved(self, key: str, value: Tensor) -> Tensor:
        """What a file holds of a tensor of this site, by its key there: all of it, or what of it has an effect."""
        return value

    def restored(self, key: str, value: Tensor) -> Tensor:
        """The tensor as this site holds it, from what a file holds; AdapterError for what no file should hold."""
        return value


class Vector(nn.Module):
    """A bare trainable tensor, wrapped so that a site can hold it as a child."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(value)

    def extra_repr(self) -> str:
        return "x".join(map(str, self.weight.shape))


class Constant(nn.Module):
    """A bare tensor that a site holds and never trains."""

    weight: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", value)

    def extra_repr(self) -> str:
        return "x".join(map(str, self.weight.shape))


def adapter_dtype(layer: LayerSpec, keep_float32: bool) -> torch.dtype:
    """The type of a new adapter's tensors: float32 beside 16-bit weights if asked, else the layer's own."""
    low = layer.dtype in (torch.float16, torch.bfloat16) or not layer.dtype.is_floating_point
    return torch.float32 if low and keep_float32 else layer.dtype
