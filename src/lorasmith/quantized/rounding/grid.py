"""The numbers that a stored weight can hold: a level of the format times the scale of a block.

Axes: I in_features, O out_features, K blocks of the weight, which run through its rows one after another and may cross
from one into the next. Matrices stand transposed, [I, O], so that a column of the weight is one stretch of memory.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lorasmith.formats import dynamic_map
from lorasmith.ops.blockwise.reference import boundaries, unpack
from lorasmith.quantized.weight import QuantizedWeight

_INT8_STEPS = 127


@dataclass(frozen=True)
class Grid:
    """The levels of a format and the blocks of one weight, its input columns in some order.

    levels f32 ascending; blocks_IO the block that each element belongs to; order [I] the column that each stands for.
    """

    levels: Tensor
    midpoints: Tensor
    blocks_IO: Tensor
    order: Tensor

    def nearest(self, numbers: Tensor) -> Tensor:
        """The level nearest to each of numbers, as a number."""
        return self.levels[torch.bucketize(numbers, self.midpoints, out_int32=True)]

    def spread(self, scales_K: Tensor) -> Tensor:
        """The scale of every element, [I, O]."""
        return scales_K[self.blocks_IO]

    def by_block(self, numbers_IO: Tensor) -> Tensor:
        """The sum over each block, [K]."""
        blocks = int(self.blocks_IO.max()) + 1
        total = torch.zeros(blocks, dtype=numbers_IO.dtype, device=numbers_IO.device)
        return total.index_add_(0, self.blocks_IO.reshape(-1), numbers_IO.reshape(-1))


def grid_of(layer: QuantizedWeight, order: Tensor) -> Grid:
    """The grid of layer's format with the columns of its matrix [O, I] in order."""
    rows, columns = layer.shape
    if layer.rowwise:
        levels = torch.arange(-_INT8_STEPS, _INT8_STEPS + 1, device=order.device) / _INT8_STEPS
        blocks = torch.arange(rows, device=order.device)[:, None].expand(rows, columns)
    else:
        levels = layer.codebook().sort().values
        flat = torch.arange(rows * columns, device=order.device) // layer.scheme.blocksize
        blocks = flat.view(rows, columns)
    midpoints = (levels[:-1] + levels[1:]) / 2
    return Grid(levels, midpoints, blocks[:, order].T.contiguous(), order)


def zeros_of(layer: QuantizedWeight, grid: Grid) -> Tensor | None:
    """The offset of every element, f32 [I, O]; None where blocks have none."""
    zeros = layer.zero_values()
    return None if zeros is None else grid.spread(zeros.reshape(-1))


def scales_of(layer: QuantizedWeight) -> Tensor:
    """The scale of each block as the stored bytes give it, f32 [K]."""
    scales, nested = layer.scale_values()
    if nested is None:
        return scales.clone()
    coarse = nested.scales.repeat_interleave(nested.blocksize)[: scales.numel()]
    return nested.codebook[scales.long()] * coarse + nested.offset


def values_of(layer: QuantizedWeight, grid: Grid) -> Tensor:
    """The level of each stored code, f32 [I, O]."""
    if layer.rowwise:
        levels = layer.weight.view(torch.int8).float() / _INT8_STEPS
    else:
        count = layer.logical_numel
        levels = layer.codebook()[unpack(layer.weight)[:count].int()].view(layer.shape)
    return levels[:, grid.order].T.contiguous()


def storable(layer: QuantizedWeight, scales_K: Tensor) -> Tensor:
    """The scales nearest to scales_K that layer can store.

    Where scales are stored in 8 bits, the offset and the scales of the scales stay as they are in layer.
    """
    return scales_K if layer.nested_scales is None else _from_codes(layer, _scale_codes(layer, scales_K))


def store_(layer: QuantizedWeight, grid: Grid, values_IO: Tensor, scales_K: Tensor) -> None:
    """Write levels and storable scales into layer's bytes."""
    codes = torch.bucketize(values_IO, grid.midpoints, out_int32=True)
    plain = torch.empty_like(codes)
    plain[grid.order] = codes
    if layer.rowwise:
        layer.weight.data = (plain.T - _INT8_STEPS).to(torch.int8).contiguous().view(torch.uint8)
    else:
        _, patterns = boundaries(layer.codebook())
        flat = patterns.to(torch.uint8)[plain.T.reshape(-1)]
        flat = functional.pad(flat, (0, flat.numel() % 2))
        layer.weight.data = flat[0::2] << 4 | flat[1::2]
    if layer.nested_scales is None:
        layer.scales.data = scales_K.contiguous().view(torch.uint8)
    else:
        layer.scales.data = _scale_codes(layer, scales_K)


def _scale_codes(layer: QuantizedWeight, scales_K: Tensor) -> Tensor:
    _, nested = layer.scale_values()
    assert nested is not None
    coarse = nested.scales.repeat_interleave(nested.blocksize)[: scales_K.numel()]
    wanted = torch.where(coarse > 0, (scales_K - nested.offset) / coarse, torch.zeros_like(coarse))
    levels = dynamic_map(scales_K.device)
    return torch.bucketize(wanted, (levels[:-1] + levels[1:]) / 2, out_int32=True).to(torch.uint8)


def _from_codes(layer: QuantizedWeight, codes: Tensor) -> Tensor:
    _, nested = layer.scale_values()
    assert nested is not None
    coarse = nested.scales.repeat_interleave(nested.blocksize)[: codes.numel()]
    return nested.codebook[codes.long()] * coarse + nested.offset
