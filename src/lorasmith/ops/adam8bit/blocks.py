"""Optimizer state in blocks of 256 numbers: 8-bit codes of a dynamic map, and the largest magnitude of each block.

Codes are those of the nearest level. (bitsandbytes' CPU backend first rounds to 65,536 points of [-1, 1], as its table
for weights does; the seven lowest levels of the unsigned map are never used there.)
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from lorasmith.formats import dynamic_map, unsigned_dynamic_map
from lorasmith.formats.lasting import lasting
from lorasmith.ops.blockwise.reference import boundaries, dequantize_flat

BLOCKSIZE = 256


@dataclass(frozen=True)
class Map:
    """levels f32 [256], ascending; a number's code is how many of edges, f32 [255], lie below it."""

    levels: Tensor
    edges: Tensor


@cache
def signed_map(device: torch.device) -> Map:
    """The map of first moments."""
    levels = dynamic_map(device)
    with lasting():
        return Map(levels, boundaries(levels)[0])


@cache
def unsigned_map(device: torch.device) -> Map:
    """The map of second moments. Only zero has the level zero: a step divides by the square root of what is kept."""
    levels = unsigned_dynamic_map(device)
    with lasting():
        edges = boundaries(levels)[0]
        edges[0] = 0.0
    return Map(levels, edges)


def to_blocks(flat: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    """codes uint8 [n], scales f32 [ceil(n / 256)] of f32 [n]; what is not a number has the code of zero."""
    blocks = F.pad(flat, (0, -flat.numel() % BLOCKSIZE)).view(-1, BLOCKSIZE)
    scales = blocks.abs().amax(dim=1)
    # a block of zeros divides zero by zero
    scaled = (blocks / scales[:, None]).nan_to_num(nan=0.0)
    codes = torch.bucketize(scaled, edges, out_int32=True).to(torch.uint8)
    return codes.view(-1)[: flat.numel()], scales


def from_blocks(codes: Tensor, scales: Tensor, levels: Tensor) -> Tensor:
    """f32 [n] of codes [n]: level x scale."""
    return dequantize_flat(codes, scales, levels, BLOCKSIZE)
