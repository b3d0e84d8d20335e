"""A module of which a bare parameter is adapted, such as a stack of experts."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lorasmith.attach.site_holder import SiteHolder
from lorasmith.errors import AttachError


class AdaptedParameter(SiteHolder):
    """A module whose own forward runs with one parameter changed; several parameters nest, as in PEFT.

    The module itself is not touched: the changed parameters stand in for as long as its forward lasts, and a
    checkpointed layer makes them anew.
    """

    def __init__(self, base_layer: nn.Module, parameter_name: str) -> None:
        super().__init__(base_layer)
        self.parameter_name = parameter_name

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module returns with the changed parameters."""
        changed = self.changed()
        if not changed:
            return self.module(*args, **kwargs)
        return functional_call(self.module, changed, args, kwargs, tie_weights=False)

    def changed(self) -> dict[str, Tensor]:
        """The parameters that acting sites change, here and in the wrappers inside, by name."""
        inner = self.base_layer
        found = inner.changed() if isinstance(inner, AdaptedParameter) else {}
        value: Tensor = self.target
        sites = self.acting()
        if sites and self.assigned is not None and self.assigned.only is None:
            raise AttachError(
                f"adapters by rows: {self.parameter_name} is adapted as a parameter, which all rows share; "
                "give each adapter its own batch"
            )
        for site in sites:
            value = site.changed(value)
        return found | {self.parameter_name: value} if sites else found

    @property
    def module(self) -> nn.Module:
        """The module inside all wrappers."""
        inner = self.base_layer
        return inner.module if isinstance(inner, AdaptedParameter) else inner

    @property
    def target(self) -> nn.Parameter:
        return self.module.get_parameter(self.parameter_name)

    def adds_bias(self, adapters: list[str]) -> bool:
        return False

    @torch.no_grad()
    def merge_(self, adapters: list[str]) -> None:
        if self.merged:
            raise AttachError(f"adapters {self.merged} are merged already; unmerge first")
        self.unmerged = {self.target: self.target.detach().clone()}
        self.target.copy_(self._summed(adapters))
        self.merged = list(adapters)

    @torch.no_grad()
    def merged_layer(self, adapters: list[str], dtype: torch.dtype | None) -> nn.Module:
        self.unmerge_()
        value = self._summed(adapters).to(dtype or self.target.dtype)
        self.module._parameters[self.parameter_name] = nn.Parameter(value, requires_grad=False)
        return self.base_layer

    def extra_repr(self) -> str:
        return f"parameter_name={self.parameter_name}\n{super().extra_repr()}"

    def _summed(self, adapters: list[str]) -> Tensor:
        weight = self.target.detach().float()
        for site in self.placed(adapters):
            weight = weight + site.delta(weight)
        return weight


def module_inside(module: nn.Module) -> nn.Module:
    """The module itself, or the one inside the wrappers of its parameters."""
    return module.module if isinstance(module, AdaptedParameter) else module


def wrap_parameter_(model: nn.Module, path: str, name: str) -> AdaptedParameter:
    """The wrapper of the parameter `name` of the module at path, made where there is none.

    Wrappers nest in the order in which the module declares its parameters, the first innermost: files rely on it.
    """
    place, found = path, model.get_submodule(path)
    order = [own for own, _ in module_inside(found).named_parameters(recurse=False)]
    while isinstance(found, AdaptedParameter) and order.index(found.parameter_name) >= order.index(name):
        if found.parameter_name == name:
            return found
        place, found = f"{place}.base_layer", found.base_layer
    wrapper = AdaptedParameter(found, name)
    wrapper.train(found.training)
    model.set_submodule(place, wrapper)
    return wrapper
