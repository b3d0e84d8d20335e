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
    return Map(levels, _midpoints(levels))


@cache
def unsigned_map(device: torch.device) -> Map:
    """The map of second moments. Only zero has the level zero: a step divides by the square root of what is kept."""
    levels = unsigned_dynamic_map(device)
    edges = _midpoints(levels)
    with torch.inference_mode(False):
        edges[0] = 0.0
    return Map(levels, edges)


def _midpoints(levels: Tensor) -> Tensor:
    with torch.inference_mode(False):
        return (levels[:-1] + levels[1:]) / 2


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
    values = levels[codes.int()]
    whole = values.numel() - values.numel() % BLOCKSIZE
    values[:whole].view(-1, BLOCKSIZE).mul_(scales[: whole // BLOCKSIZE, None])
    # the partial last block
    values[whole:].mul_(scales[whole // BLOCKSIZE :])
    return values
