"""Where an optimizer's state lies between steps."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor


class Placement(ABC):
    """Chooses the memory of kept tensors, and brings them to the parameter's device for an update.

    pages says that they give way to activations when the device has no room for both.
    """

    pages: ClassVar[bool] = False

    def check(self, device: torch.device, kept: Iterable[dict[str, Tensor]]) -> None:
        """Raise InputError where kept tensors (on the meta device too) of parameters on device cannot be placed."""
        return

    @abstractmethod
    def place(self, kept: dict[str, Tensor]) -> dict[str, Tensor]:
        """Kept tensors, moved to where they lie between steps."""

    def expect(self, kept: dict[str, Tensor]) -> None:
        """Told that kept will be fetched next, while another update runs; nothing need be done."""
        return

    @abstractmethod
    def fetch(self, kept: dict[str, Tensor], like: Tensor) -> dict[str, Tensor]:
        """Kept tensors on the device of like, for an update."""

    @abstractmethod
    def put_back_(self, kept: dict[str, Tensor], fetched: dict[str, Tensor]) -> None:
        """Store what the update has made of fetched."""


class BesideParameter(Placement):
    """On the device of the parameter, always."""

    def place(self, kept: dict[str, Tensor]) -> dict[str, Tensor]:
        return kept

    def fetch(self, kept: dict[str, Tensor], like: Tensor) -> dict[str, Tensor]:
        return kept

    def put_back_(self, kept: dict[str, Tensor], fetched: dict[str, Tensor]) -> None:
        return
