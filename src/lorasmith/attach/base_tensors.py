"""Tensors of the base model that an adapter trains in place: biases beside LoRA, and selective methods."""

import torch
from torch import Tensor, nn


class BaseTensors:
    """Some parameters of the base with two values each, the original and the adapter's; one of them is in place.

    names are file keys without prefix; the parameters are held by identity.
    """

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        self.parameters = parameters
        self._aside: dict[str, Tensor] = {name: p.detach().clone() for name, p in parameters.items()}
        self.tuned = False

    @torch.no_grad()
    def put(self, tuned: bool) -> None:
        """Put the adapter's values in place, or the originals; the other ones wait aside."""
        if tuned == self.tuned:
            return
        for name, parameter in self.parameters.items():
            waiting = self._aside[name].to(parameter.device, parameter.dtype)
            self._aside[name] = parameter.detach().clone()
            parameter.copy_(waiting)
        self.tuned = tuned

    def values(self) -> dict[str, Tensor]:
        """The adapter's values by name, wherever they are now."""
        return {name: p.detach() if self.tuned else self._aside[name] for name, p in self.parameters.items()}

    @torch.no_grad()
    def load(self, name: str, value: Tensor) -> None:
        """Take over the adapter's value of one tensor."""
        target = self.parameters[name].data if self.tuned else self._aside[name]
        target.copy_(value)
