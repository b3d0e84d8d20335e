"""A module that is trained whole beside an adapter: `modules_to_save`."""

import copy
from typing import Any

from torch import nn

from lorasmith.attach.assignment import Assignment
from lorasmith.attach.by_rows import whole_modules_by_rows
from lorasmith.errors import AttachError
from lorasmith.quantized import QuantizedWeight, dense_module


class SavedModule(nn.Module):
    """The original module and one trainable copy of it for each adapter that asks; named inside as in PEFT."""

    def __init__(self, original_module: nn.Module) -> None:
        super().__init__()
        self.original_module = original_module
        self.modules_to_save = nn.ModuleDict()
        self.active: str | None = None
        self.enabled = True
        # who serves which rows, instead of the active one for all
        self.assigned: Assignment | None = None

    def add(self, adapter: str) -> None:
        """Give the adapter a copy of the module; a quantized module is copied dense, so that it can train."""
        original = self.original_module
        if any(isinstance(child, QuantizedWeight) for child in original.modules()) and not isinstance(
            original, QuantizedWeight
        ):
            raise AttachError("modules_to_save: the module holds quantized layers; skip them when quantizing")
        fresh = dense_module(original) if isinstance(original, QuantizedWeight) else copy.deepcopy(original)
        self.modules_to_save[adapter] = fresh

    def remove(self, adapter: str) -> None:
        """Drop the adapter's copy."""
        del self.modules_to_save[adapter]
        if self.active == adapter:
            self.active = None

    @property
    def acting(self) -> nn.Module:
        """The copy that is in use, or the original."""
        return self.of(self.active if self.assigned is None else self.assigned.only)

    def of(self, adapter: str | None) -> nn.Module:
        """The copy of one adapter, or the original."""
        if self.enabled and adapter is not None and adapter in self.modules_to_save:
            return self.modules_to_save[adapter]
        return self.original_module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the acting module returns."""
        if self.assigned is None or self.assigned.only is not None:
            return self.acting(*args, **kwargs)
        modules = {name: self.of(name) for name in self.assigned.present}
        if all(module is self.original_module for module in modules.values()):
            return self.original_module(*args, **kwargs)
        return whole_modules_by_rows(self.assigned, modules, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in ("original_module", "modules_to_save"):
                raise
            return getattr(self.acting, name)
