"""A module with adapters: the one wrapper that serves every method, number format and number of adapters."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from lorasmith.errors import AttachError
from lorasmith.methods import Site, dense_weight, frozen_product
from lorasmith.ops import adapted_linear
from lorasmith.quantized import QuantizedLinear, QuantizedWeight, dense_module


@dataclass(frozen=True)
class StoredWeight:
    """The weight of a layer, dense, quantized or a Conv1D's, for whom its storage is of no concern."""

    layer: Any

    def __call__(self) -> Tensor:
        """The dense weight [out, in, ...] in the type that it was loaded in."""
        return dense_weight(self.layer)

    @torch.no_grad()
    def times(self, rows: Tensor) -> Tensor:
        """rows W^T of rows [R, in] -> [R, out] in the type of rows, without gradients."""
        if isinstance(self.layer, QuantizedLinear):
            return self.layer.product().forward(rows, None)
        return functional.linear(rows, dense_weight(self.layer, rows.dtype))


class Adapted(nn.Module):
    """base_layer with the sites of any number of adapters; the active ones act, in the order of their names' list.

    The tensors of the sites are registered by slot and adapter, as PEFT names them: `lora_A.default.weight`.
    """

    # a layer of any kind and storage
    base_layer: Any
    sites: dict[str, Site]

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        # a plain dict: the sites' children are registered below, the sites themselves must not be
        self.sites = {}
        self.active: list[str] = []
        self.enabled = True
        self.merged: list[str] = []
        # (weight, bias) before a merge in place: a sum and a difference of roundings is not the identity
        self._unmerged: tuple[Tensor, Tensor | None] | None = None

    def add(self, adapter: str, site: Site) -> None:
        """Place site here under the adapter's name."""
        self.sites[adapter] = site
        for slot, child in _slots(site):
            if slot not in self._modules:
                self.add_module(slot, nn.ModuleDict())
            self.slot(slot)[adapter] = child

    def remove(self, adapter: str) -> None:
        """Take the adapter's site away."""
        site = self.sites.pop(adapter)
        for slot, _ in _slots(site):
            del self.slot(slot)[adapter]
            if not self.slot(slot):
                del self._modules[slot]
        self.active = [name for name in self.active if name != adapter]

    def slot(self, name: str) -> nn.ModuleDict:
        """The tensors of this name of all adapters."""
        found = self._modules[name]
        assert isinstance(found, nn.ModuleDict)
        return found

    def acting(self) -> list[Site]:
        """The sites that change the output now."""
        if not self.enabled or self.merged:
            return []
        return [self.sites[name] for name in self.active if name in self.sites]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer's output, changed by the acting sites."""
        sites = self.acting()
        fused = self._fused(x, sites) if not args and not kwargs else None
        if fused is not None:
            return fused
        changed = x
        for site in sites:
            changed = site.before(changed)
        y = self.base_layer(changed, *args, **kwargs)
        for site in sites:
            y = site.after(x, y, self.base_weight)
        return y

    def _fused(self, x: Tensor, sites: list[Site]) -> Tensor | None:
        """The output in one step, where all that acts are low-rank updates of a frozen linear layer."""
        # a compiler fuses the parts itself, and sees through them
        if not sites or torch.compiler.is_compiling():
            return None
        updates = [site.low_rank() for site in sites]
        product = frozen_product(self.base_layer, x)
        if product is None or not all(updates):
            return None
        return adapted_linear(x, product, self.bias, [update for update in updates if update is not None])

    @property
    def base_weight(self) -> "StoredWeight":
        """The base's weight as sites see it."""
        return StoredWeight(self.base_layer)

    def deltas(self, adapters: list[str]) -> tuple[Tensor, Tensor | None]:
        """The weight [out, in, ...] in f32 and the bias that the base would have with these adapters merged."""
        weight = dense_weight(self.base_layer, torch.float32)
        old = self.base_layer._parameters.get("bias")
        bias = None if old is None else old.detach().float()
        sites = [self.sites[name] for name in adapters if name in self.sites]
        # what changes the input changes it for the base alone, whatever stands before it in the list
        for site in sorted(sites, key=lambda site: type(site).before is Site.before):
            extra = site.delta_bias(bias)
            weight = weight + site.delta(weight)
            if extra is not None:
                bias = extra if bias is None else bias + extra.to(bias.dtype)
        return weight, bias

    def adds_bias(self, adapters: list[str]) -> bool:
        """Whether merging these adapters needs a bias that the base has not."""
        sites = [self.sites[name] for name in adapters if name in self.sites]
        return self.bias is None and any(site.delta_bias(None) is not None for site in sites)

    def merge_(self, adapters: list[str]) -> None:
        """Add these adapters to the dense base weight, one rounding in all; `unmerge_` restores the bits."""
        if self.merged:
            raise AttachError(f"adapters {self.merged} are merged already; unmerge first")
        base = self.base_layer
        weight, bias = self.deltas(adapters)
        self._unmerged = (base.weight.detach().clone(), None if self.bias is None else self.bias.detach().clone())
        base.weight.data.copy_(weight.T if isinstance(base, Conv1D) else weight)
        if bias is not None:
            base.bias.data.copy_(bias)
        self.merged = list(adapters)

    def unmerge_(self) -> None:
        """Put back the weight from before the merge, bit for bit."""
        if self._unmerged is None:
            return
        weight, bias = self._unmerged
        self.base_layer.weight.data.copy_(weight)
        if bias is not None:
            self.base_layer.bias.data.copy_(bias)
        self._unmerged, self.merged = None, []

    @torch.no_grad()
    def merged_layer(self, adapters: list[str], dtype: torch.dtype | None) -> nn.Module:
        """A dense layer with these adapters added to the weight in f32, then rounded once to dtype."""
        self.unmerge_()
        weight, bias = self.deltas([name for name in adapters if name in self.sites])
        base = self.base_layer
        target = dtype or (base.dtype if isinstance(base, QuantizedWeight) else base.weight.dtype)
        layer = dense_module(base) if isinstance(base, QuantizedWeight) else base
        value = weight.T if isinstance(layer, Conv1D) else weight
        layer.weight = nn.Parameter(value.to(target).contiguous(), requires_grad=False)
        if bias is not None:
            layer.bias = nn.Parameter(bias.to(target), requires_grad=False)
        return layer

    @property
    def weight(self) -> Tensor:
        """The base's stored weight: some models read its type or device."""
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        """The base's bias."""
        return self.base_layer._parameters.get("bias")

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(self.base_layer, name)

    def extra_repr(self) -> str:
        return "\n".join(f"{name}: {site.describe()}, {self._state(name)}" for name, site in self.sites.items())

    def _state(self, name: str) -> str:
        if name in self.merged:
            return "merged"
        return "active" if self.enabled and name in self.active else "idle"


def _slots(site: Site) -> list[tuple[str, nn.Module]]:
    # a dropout of nothing holds no tensor and has no mode
    return [(name, child) for name, child in site.named_children() if not isinstance(child, nn.Identity)]
