"""What a wrapper in the module tree does for the sites of any number of adapters, whatever it wraps."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from lorasmith.attach.assignment import Assignment
from lorasmith.methods import Site


class SiteHolder(nn.Module, ABC):
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
        # who serves which rows, instead of the active ones for all
        self.assigned: Assignment | None = None
        self.merged: list[str] = []
        # what a merge in place changed, as it was: a sum and a difference of roundings is not the identity
        self.unmerged: dict[nn.Parameter, Tensor] = {}

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
        """The sites that change the output now, where all rows are alike."""
        if not self.enabled or self.merged:
            return []
        names = self.active if self.assigned is None else self.assigned.present
        return [self.sites[name] for name in names if name in self.sites]

    def placed(self, adapters: list[str]) -> list[Site]:
        """The sites here of these adapters."""
        return [self.sites[name] for name in adapters if name in self.sites]

    @property
    @abstractmethod
    def target(self) -> nn.Parameter | None:
        """The base's parameter that merging changes."""

    @abstractmethod
    def adds_bias(self, adapters: list[str]) -> bool:
        """Whether merging these adapters needs a bias that the base has not."""

    @abstractmethod
    def merge_(self, adapters: list[str]) -> None:
        """Add these adapters to the dense base, one rounding in all; `unmerge_` restores the bits."""

    def follow_(self, adapters: list[str]) -> None:
        """Count these adapters as merged, since the layer that this one shares its weight with has taken them in."""
        self.merged = list(adapters)

    @torch.no_grad()
    def unmerge_(self) -> None:
        """Put back what was there before the merge, bit for bit."""
        for parameter, value in self.unmerged.items():
            parameter.copy_(value)
        self.unmerged, self.merged = {}, []

    @abstractmethod
    def merged_layer(self, adapters: list[str], dtype: torch.dtype | None) -> nn.Module:
        """What stands here without the wrapper: these adapters added in f32, then rounded once to dtype."""

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
