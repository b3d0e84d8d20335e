"""What the Triton kernels of a quantized linear layer are given: its weight, and an update to add to its output."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lorasmith.ops.blockwise.schema import bits_of


@dataclass(frozen=True)
class PackedWeight:
    """W [out_features, in_features] in 4-bit codes whose blocks do not cross from one row to the next.

    tables: scales, codebook, nested scales, nested offset and nested codebook, the last three None where the scales
    are stored as they are; nested_blocksize is then 0.
    """

    packed: Tensor
    tables: tuple[Tensor | None, ...]
    blocksize: int
    out_features: int
    in_features: int
    nested_blocksize: int

    @property
    def has_words(self) -> bool:
        """Whether the codes can be read as int32."""
        return self.packed.storage_offset() % 4 == 0


@dataclass(frozen=True)
class Update:
    """h B^T, to be added to an output [N, O]: h f32 [N, R] and B [O, R] of any float type."""

    h: Tensor
    b: Tensor


def packed_weight(stored: tuple[Any, ...]) -> PackedWeight | None:
    """The weight that an op is given behind x and bias; None where the kernels do not take it."""
    packed, scales, codebook, blocksize, (out_features, in_features), *nested, nested_blocksize = stored
    if bits_of(codebook) != 4 or in_features % blocksize != 0 or out_features * in_features == 0:
        return None
    tables = (scales, codebook, *nested)
    group = 0 if nested[0] is None else nested_blocksize
    return PackedWeight(packed, tables, blocksize, out_features, in_features, group)
