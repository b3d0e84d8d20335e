"""Slots in 8 bits: blocks of 256 with a code an element and a scale a block. Source: arXiv 2110.02861, section 2."""

import torch
from torch import Tensor

from lorasmith.ops import from_blocks, signed_map, to_blocks, unsigned_map
from lorasmith.ops.adam8bit.blocks import BLOCKSIZE, Map
from lorasmith.training.optimizers.rule import Slot
from lorasmith.training.optimizers.state_format import Plain, StateFormat

SMALLEST = 4096
"""Elements from which a tensor is kept in 8 bits, as in bitsandbytes: smaller ones save nothing worth a rounding."""

CODES, SCALES = "codes", "scales"


class EightBit(StateFormat):
    """The signed dynamic map for slots of either sign, the unsigned one for others: 1.016 bytes an element.

    Slots of small tensors, and of tensors in f64, stay as they are.
    """

    def __init__(self) -> None:
        self.plain = Plain()

    def zeros(self, slot: Slot, like: Tensor) -> dict[str, Tensor]:
        if like.numel() < SMALLEST or like.dtype == torch.float64:
            return self.plain.zeros(slot, like)
        scales = torch.zeros(-(-like.numel() // BLOCKSIZE), dtype=torch.float32, device=like.device)
        return {CODES: torch.zeros(like.numel(), dtype=torch.uint8, device=like.device), SCALES: scales}

    def read(self, slot: Slot, kept: dict[str, Tensor], shape: torch.Size) -> Tensor:
        if not in_blocks(kept):
            return self.plain.read(slot, kept, shape)
        return from_blocks(kept[CODES], kept[SCALES], _map(slot, kept).levels).view(shape)

    def write_(self, slot: Slot, kept: dict[str, Tensor], values: Tensor) -> None:
        if not in_blocks(kept):
            self.plain.write_(slot, kept, values)
            return
        codes, scales = to_blocks(values.reshape(-1), _map(slot, kept).edges)
        kept[CODES].copy_(codes)
        kept[SCALES].copy_(scales)


def in_blocks(kept: dict[str, Tensor]) -> bool:
    """Whether these are the tensors of a slot in 8 bits."""
    return CODES in kept


def _map(slot: Slot, kept: dict[str, Tensor]) -> Map:
    return (signed_map if slot.signed else unsigned_map)(kept[CODES].device)
