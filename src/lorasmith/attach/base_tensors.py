"""Tensors of the base model that adapters train in place: biases beside LoRA, and selective methods."""

import torch
from torch import Tensor, nn


class BaseTensors:
    """The base's trained tensors, with their originals and each adapter's own values.

    A tensor holds its original, or the value of the last acting adapter that trains it. Parameters are keys by
    identity, so that a tied one has one value under all its names, and copies of a model keep theirs.
    """

    def __init__(self) -> None:
        # file key -> parameter, by adapter; a tied parameter has several keys
        self.keys: dict[str, dict[str, nn.Parameter]] = {}
        self.originals: dict[nn.Parameter, Tensor] = {}
        self.tuned: dict[str, dict[nn.Parameter, Tensor]] = {}
        self.owner: dict[nn.Parameter, str] = {}

    def add(self, adapter: str, parameters: dict[str, nn.Parameter]) -> None:
        """Let adapter train parameters, given by file key, from the originals on."""
        self.place([])
        self.keys[adapter] = parameters
        for parameter in parameters.values():
            self.originals.setdefault(parameter, parameter.detach().clone())
        self.tuned[adapter] = {parameter: self.originals[parameter].clone() for parameter in parameters.values()}

    def remove(self, adapter: str) -> None:
        """Forget the adapter's values; the originals are back in place."""
        self.place([])
        if self.keys.pop(adapter, None) is None:
            return
        del self.tuned[adapter]
        kept = {parameter for values in self.tuned.values() for parameter in values}
        self.originals = {parameter: value for parameter, value in self.originals.items() if parameter in kept}

    @torch.no_grad()
    def place(self, acting: list[str]) -> None:
        """Put the values of the acting adapters in place, in this order, over the originals."""
        for parameter, adapter in self.owner.items():
            self.tuned[adapter][parameter] = parameter.detach().clone()
            parameter.copy_(self.originals[parameter])
        self.owner = {}
        for adapter in acting:
            for parameter, value in self.tuned.get(adapter, {}).items():
                parameter.copy_(value)
                self.owner[parameter] = adapter

    def copies(self) -> list[Tensor]:
        """What is held beside the model's own parameters: originals, and every adapter's values."""
        return [*self.originals.values(), *(value for values in self.tuned.values() for value in values.values())]

    def parameters(self, adapter: str) -> list[nn.Parameter]:
        """The parameters that adapter trains, each once."""
        return list(self.tuned.get(adapter, {}))

    def values(self, adapter: str) -> dict[str, Tensor]:
        """The adapter's values by file key, wherever they are now."""
        return {key: self._value(adapter, parameter) for key, parameter in self.keys.get(adapter, {}).items()}

    @torch.no_grad()
    def load(self, adapter: str, key: str, value: Tensor) -> None:
        """Take over the adapter's value of one tensor."""
        self._value(adapter, self.keys[adapter][key]).copy_(value)

    def _value(self, adapter: str, parameter: nn.Parameter) -> Tensor:
        return parameter.detach() if self.owner.get(parameter) == adapter else self.tuned[adapter][parameter]
