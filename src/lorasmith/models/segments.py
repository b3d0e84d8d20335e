"""Where the segments of a packed row lie, in the forms that attention kernels ask for.

The bounds stand on the CPU. What a kernel needs of them on its own device is made once for a batch: the same bounds
come from every layer, forward and again in a recomputed backward, and are answered from a small cache by their values.
Axes: T tokens, S segments, P shared keys (a prefix), which stand before the T keys and are seen by every segment.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from lorasmith.errors import ModelError

BLOCK = 128
"""Rows and columns of a tile of flex attention's block mask: the size that its kernels are tuned for."""

# layers of two or three windows, and the batch before: a few kilobytes each
_KEPT = 8


@dataclass(frozen=True)
class Segments:
    """Segments of a packed row among its keys: bounds [S + 1] begin at P, the number of shared keys.

    window is how many positions a token sees, itself included; the P shared keys are the positions before each
    segment. Raises ModelError for an encoder's window.
    """

    bounds: tuple[int, ...]
    causal: bool
    window: int | None = None

    def __post_init__(self) -> None:
        if self.slides and not self.causal:
            raise ModelError("packed attention knows no sliding window of an encoder; train with padding_free: false")

    @property
    def shared(self) -> int:
        return self.bounds[0]

    @property
    def tokens(self) -> int:
        return self.bounds[-1] - self.bounds[0]

    @property
    def lengths(self) -> list[int]:
        return [end - start for start, end in pairwise(self.bounds)]

    @property
    def longest(self) -> int:
        return max(self.lengths)

    @property
    def slides(self) -> bool:
        """Whether the window hides anything from the longest segment."""
        return self.window is not None and self.shared + self.longest > self.window


@lru_cache(maxsize=_KEPT)
def ends(segments: Segments, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where each segment's queries and keys begin and the last ends, int32 [S + 1] each, the keys with the P repeated.

    The layout is that of variable-length attention: segment i has L queries and P + L keys.
    """
    queries = torch.tensor(segments.bounds, dtype=torch.int32) - segments.shared
    keys = queries + segments.shared * torch.arange(len(segments.bounds), dtype=torch.int32)
    return queries.to(device), keys.to(device)


def with_shared(packed: Tensor, segments: Segments) -> Tensor:
    """[P + T, H, head] -> [S * P + T, H, head]: the P first rows before each segment.

    Joined, not gathered: the gradient of a gather adds to shared rows in no fixed order on a GPU.
    """
    if not segments.shared:
        return packed
    shared, *own = packed.split([segments.shared, *segments.lengths])
    return torch.cat([part for each in own for part in (shared, each)])


@lru_cache(maxsize=_KEPT)
def block_mask(segments: Segments, device: torch.device) -> BlockMask:
    """Flex attention's mask of T queries and P + T keys: no tile outside a segment is computed or looked at."""
    seen, whole = _tiles(segments)
    partial = _listed(seen & ~whole, device)
    first, last = (torch.tensor(bound, dtype=torch.int32, device=device) for bound in _own_keys(segments))
    shared, window, causal = segments.shared, segments.window if segments.slides else None, segments.causal

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own = (key >= first[query]) & (key <= (query + shared if causal else last[query]))
        if window is not None:
            own = own & (query + shared - key < window)
        if not shared:
            return own
        common = key < shared
        if window is not None:
            # a segment's first token stands at position P
            common = common & (query + shared - first[query] + shared - key < window)
        return own | common

    sizes = (segments.tokens, segments.shared + segments.tokens)
    return BlockMask.from_kv_blocks(
        *partial, *_listed(whole, device), BLOCK_SIZE=BLOCK, mask_mod=sees, seq_lengths=sizes
    )


def _own_keys(segments: Segments) -> tuple[np.ndarray, np.ndarray]:
    """The first and last key of the segment that each query belongs to, [T] each."""
    starts, stops = np.array(segments.bounds[:-1]), np.array(segments.bounds[1:]) - 1
    return np.repeat(starts, segments.lengths), np.repeat(stops, segments.lengths)


def _tiles(segments: Segments) -> tuple[np.ndarray, np.ndarray]:
    """Tiles [T / BLOCK, (P + T) / BLOCK] that hold a key which some query sees, and that hold none which one does not.

    The keys of its own segment that a query sees are one run, and so are those of all queries of a tile together,
    since the runs of neighbours touch: the outermost ends decide.
    """
    first, last = _own_keys(segments)
    query = np.arange(segments.tokens) + segments.shared
    if segments.causal:
        last = query
    reach = segments.window if segments.slides else None
    low = first if reach is None else np.maximum(first, query - reach + 1)
    at = np.arange(0, segments.tokens, BLOCK)
    begin = np.arange(0, segments.shared + segments.tokens, BLOCK)
    end = np.minimum(begin + BLOCK, segments.shared + segments.tokens) - 1
    seen = (np.minimum.reduceat(low, at)[:, None] <= end) & (np.maximum.reduceat(last, at)[:, None] >= begin)
    whole = (np.maximum.reduceat(low, at)[:, None] <= begin) & (np.minimum.reduceat(last, at)[:, None] >= end)
    if segments.shared:
        nearest = np.minimum.reduceat(query - first, at)
        reached = np.ones_like(nearest, dtype=bool) if reach is None else nearest + 1 < reach
        seen |= reached[:, None] & (begin < segments.shared)
    return seen, whole & seen


def _listed(tiles: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """How many tiles of each row are set, int32 [1, 1, rows], and their columns first, int32 [1, 1, rows, columns]."""
    columns = np.argsort(~tiles, axis=1, kind="stable").astype(np.int32)
    counts = tiles.sum(1).astype(np.int32)
    return torch.from_numpy(counts)[None, None].to(device), torch.from_numpy(columns)[None, None].to(device)
