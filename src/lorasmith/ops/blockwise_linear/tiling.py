"""The tiles that the products of matrix.py may be computed in, and how many programs share the columns of one.

The first tile of a list is the rule: it fits the 64 KiB of shared memory of sm_75, and is what runs where nothing is
measured. The others fit 100 KiB, which every GPU from sm_80 on has. What they trade:

- more rows decode W less often (each tile of rows decodes it anew), more outputs read x less often;
- more depth or stages have more bytes on their way at once, which few rows need, and take shared memory from other
  programs of the same processor.
"""

from dataclasses import dataclass

import torch
import triton

MOST_SPLITS = 8


@dataclass(frozen=True)
class Tile:
    """What a program computes: rows x outs outputs (of g W: x outs columns), depth products at a time."""

    rows: int
    outs: int
    depth: int
    warps: int
    stages: int = 2

    @property
    def config(self) -> triton.Config:
        """As the tuner takes it."""
        sizes = {"ROWS": self.rows, "OUTS": self.outs, "DEPTH": self.depth}
        return triton.Config(sizes, num_warps=self.warps, num_stages=self.stages)


FORWARD = {
    # splits are reckoned by the first tile, so tiles of few rows have as many outputs
    "16 rows": (Tile(16, 64, 64, 4), Tile(16, 64, 128, 4), Tile(16, 64, 64, 4, 4)),
    "32 rows": (Tile(32, 64, 64, 4), Tile(32, 64, 128, 4), Tile(32, 64, 64, 4, 4)),
    "64 rows": (Tile(64, 64, 32, 4), Tile(64, 64, 64, 4, 3), Tile(64, 128, 32, 4, 3)),
    "many rows": (
        Tile(128, 128, 64, 8),
        Tile(128, 128, 64, 8, 3),
        Tile(256, 128, 32, 8, 3),
        Tile(256, 128, 64, 8),
    ),
    "f32": (Tile(64, 64, 32, 4), Tile(64, 128, 32, 8), Tile(128, 64, 32, 8)),
}
BACKWARD = {
    **FORWARD,
    # without tensor cores a thread holds its operands of a whole step: more depth than this spills registers
    "f32": (Tile(64, 64, 16, 8), Tile(64, 64, 16, 4), Tile(16, 64, 16, 4)),
}


def forward_tiles(rows: int, dtype: torch.dtype) -> str:
    """The list to choose from: few rows want to read much of W, many want each decoded tile to meet many of them."""
    if rows <= 64:
        return "16 rows" if rows <= 16 else "32 rows" if rows <= 32 else "64 rows"
    return "f32" if dtype == torch.float32 else "many rows"


def backward_tiles(rows: int, dtype: torch.dtype) -> str:
    """The list to choose from."""
    return "f32" if dtype == torch.float32 else forward_tiles(rows, dtype)


def splits_of(rows: int, outs: int, depth: int, tile: Tile, device: torch.device) -> int:
    """Into how many parts to split the depth of a product [rows, outs], so that its tiles fill the GPU.

    Each processor is to have two programs, of four steps or more each.
    """
    # the interpreter has none to count, and is to split small products too
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 8
    tiles = triton.cdiv(outs, tile.outs) * triton.cdiv(rows, tile.rows)
    wanted = min(MOST_SPLITS, 2 * processors // tiles, triton.cdiv(depth, tile.depth) // 4)
    return 1 << (wanted.bit_length() - 1) if wanted > 1 else 1
