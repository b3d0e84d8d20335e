"""In which form an optimizer's slots are kept between steps."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from lorasmith.training.optimizers.rule import Slot


class StateFormat(ABC):
    """Turns a slot into the tensors that are kept, and back.

    A slot's tensors are named by their part ("" where there is only one); what a checkpoint keeps is these tensors.
    """

    @abstractmethod
    def zeros(self, slot: Slot, like: Tensor) -> dict[str, Tensor]:
        """Kept tensors of a slot of zeros with the shape of like, which may stand on the meta device."""

    @abstractmethod
    def read(self, slot: Slot, kept: dict[str, Tensor], shape: torch.Size) -> Tensor:
        """The slot as f32 (f64 for an f64 parameter); may be a view that write then finds already changed."""

    @abstractmethod
    def write_(self, slot: Slot, kept: dict[str, Tensor], values: Tensor) -> None:
        """Keep values as the slot."""


class Plain(StateFormat):
    """Slots as they are, in f32 (f64 for an f64 parameter)."""

    def zeros(self, slot: Slot, like: Tensor) -> dict[str, Tensor]:
        dtype = torch.promote_types(like.dtype, torch.float32)
        return {"": torch.zeros_like(like, dtype=dtype, memory_format=torch.contiguous_format)}

    def read(self, slot: Slot, kept: dict[str, Tensor], shape: torch.Size) -> Tensor:
        return kept[""]

    def write_(self, slot: Slot, kept: dict[str, Tensor], values: Tensor) -> None:
        if values is not kept[""]:
            kept[""].copy_(values)
