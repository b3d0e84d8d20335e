"""A layer with adapters: the one wrapper that serves every method, number format and number of adapters."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lorasmith.attach.assignment import Assignment
from lorasmith.attach.by_rows import Stack, each_on_its_rows, updates_by_rows
from lorasmith.attach.site_holder import SiteHolder
from lorasmith.attach.stored_weight import StoredWeight
from lorasmith.errors import AttachError
from lorasmith.methods import Site, dense_weight, frozen_product
from lorasmith.methods.kept import Kept
from lorasmith.ops import LowRank, Part, Product, adapted_linear
from lorasmith.quantized import QuantizedWeight, dense_module


class Adapted(SiteHolder):
    """A layer of any kind and storage, with adapters before, beside and behind it; or a block of several layers.

    The modules inside a block are reached, and replaced, by the paths that they had before.
    """

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self._stack: Kept[Stack | None] = Kept()
        # an input, and the output for it that one step of several layers has made
        self._ready: tuple[Tensor, Tensor] | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        inside = self.__dict__.get("_modules", {}).get("base_layer")
        if isinstance(value, nn.Module) and inside is not None and name in inside._modules:
            setattr(inside, name, value)
        else:
            super().__setattr__(name, value)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer's output, changed by the acting sites."""
        if self._ready is not None:
            (ready_x, y), self._ready = self._ready, None
            if ready_x is x and not args and not kwargs:
                return y
        sites = self.acting()
        if sites and self.assigned is not None and self.assigned.only is None:
            return self._by_rows(self.assigned, x, *args, **kwargs)
        part = None if args or kwargs else self._part(x, sites)
        if part is not None:
            return adapted_linear(x, part.product, part.bias, part.updates)
        changed = x
        for site in sites:
            changed = site.before(changed)
        y = self.base_layer(changed, *args, **kwargs)
        for site in sites:
            y = site.after(x, y, self.base_weight)
        return y

    def part(self, x: Tensor) -> Part | None:
        """What forward does with x as one step, which may be joined with other layers' (ops.adapted_linears)."""
        if self.assigned is not None and self.assigned.only is None:
            return None
        return self._part(x, self.acting())

    def _part(self, x: Tensor, sites: list[Site]) -> Part | None:
        product = self._product(x, sites)
        updates = None if product is None else self._updates(sites)
        return None if product is None or updates is None else Part(product, self.bias, updates)

    def make_ready(self, x: Tensor, y: Tensor) -> None:
        """Let the next call give y, if it is with x itself."""
        self._ready = (x, y)

    def forget_ready(self) -> None:
        """Let calls compute again."""
        self._ready = None

    def _by_rows(self, assigned: Assignment, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer's output, each row changed by the site of its own adapter."""
        assigned.check(x)
        sites = {name: self.sites[name] for name in assigned.present if name in self.sites}
        product = self._product(x, list(sites.values())) if not args and not kwargs else None
        updates = None if product is None else self._low_rank(list(sites.values()))
        if product is not None and updates is not None:
            named = dict(zip(sites, updates, strict=True))
            return adapted_linear(x, product, self.bias, updates_by_rows(assigned, named, x, self._stack))
        return each_on_its_rows(
            assigned, sites, x, lambda changed: self.base_layer(changed, *args, **kwargs), self.base_weight
        )

    def _product(self, x: Tensor, sites: list[Site]) -> Product | None:
        """Multiplying by the frozen weight, where updates may run in one step with it."""
        # a compiler fuses the parts itself, and sees through them
        return None if not sites or torch.compiler.is_compiling() else frozen_product(self.base_layer, x)

    def _updates(self, sites: list[Site]) -> list[LowRank] | None:
        """The sites as updates of all rows, where they are such."""
        updates = self._low_rank(sites)
        # a gain multiplies what stands before it in the list, so it takes the step alone
        if updates is not None and len(updates) > 1 and any(update.gain is not None for update in updates):
            return None
        return updates

    def _low_rank(self, sites: list[Site]) -> list[LowRank] | None:
        weight = self.base_weight
        updates = [update for site in sites if (update := site.low_rank(weight)) is not None]
        return updates if len(updates) == len(sites) else None

    @property
    def base_weight(self) -> StoredWeight:
        """The base's weight as sites see it."""
        return StoredWeight(self)

    def deltas(self, adapters: list[str], weight: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The weight [out, in, ...] in f32 and the bias that the base would have with these adapters merged.

        weight stands in for the base's own: the one that a quantized base was made from.
        """
        weight = dense_weight(self.base_layer, torch.float32) if weight is None else weight.float()
        old = self.base_layer._parameters.get("bias")
        bias = None if old is None else old.detach().float()
        sites = self.placed(adapters)
        # what changes the input changes it for the base alone, whatever stands before it in the list
        for site in sorted(sites, key=lambda site: type(site).before is Site.before):
            site.before_merge(self.base_weight)
            extra = site.delta_bias(bias)
            weight = weight + site.delta(weight)
            if extra is not None:
                bias = extra if bias is None else bias + extra.to(bias.dtype)
        return weight, bias

    def adds_bias(self, adapters: list[str]) -> bool:
        return self.bias is None and any(site.delta_bias(None) is not None for site in self.placed(adapters))

    @torch.no_grad()
    def merge_(self, adapters: list[str]) -> None:
        if self.merged:
            raise AttachError(f"adapters {self.merged} are merged already; unmerge first")
        base = self.base_layer
        weight, bias = self.deltas(adapters)
        changed = [base.weight] if bias is None else [base.weight, base.bias]
        self.unmerged = {parameter: parameter.detach().clone() for parameter in changed}
        base.weight.copy_(weight.T if isinstance(base, Conv1D) else weight)
        if bias is not None:
            base.bias.copy_(bias)
        self.merged = list(adapters)

    @torch.no_grad()
    def merged_layer(self, adapters: list[str], dtype: torch.dtype | None) -> nn.Module:
        self.unmerge_()
        if self.target is None:
            # a block, whose layers are merged one by one
            return self.base_layer
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
    def target(self) -> nn.Parameter | None:
        return self.base_layer._parameters.get("weight")

    @property
    def weight(self) -> Tensor:
        """The base's stored weight: some models read its type or device."""
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        """The base's bias."""
        return self.base_layer._parameters.get("bias")
