"""The memory of a static cache that recorded steps read and write, lent to one of transformers' caches at a time.

generate makes a new cache for every call, and a recorded step knows addresses. So behind the prompt the contents
move in here, and the layers hold these tensors from then on. Whoever held them before gets copies, so that a cache that
somebody kept never changes behind his back.

B batch, H heads of keys, L length, D width of a head.
"""

import copy
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import StaticCache
from transformers.cache_utils import Cache, CacheLayerMixin, StaticLayer, StaticSlidingWindowLayer

from lorasmith.decoding.recorder import NotRecordable

_LAYERS = (StaticLayer, StaticSlidingWindowLayer)
# caches of so many more tokens share their steps; attention kernels take masks of such lengths as they are
_ROUNDED_TO = 256

Layout = tuple[Any, ...]
"""What two caches must have in common to use the same buffers."""


def check(cache: Cache) -> None:
    """Raise NotRecordable unless the steps on cache do the same work each time."""
    if type(cache) is not StaticCache:
        raise NotRecordable(f"the cache is a {type(cache).__name__}, whose memory moves")
    if cache.offloading:
        raise NotRecordable("the cache is offloaded to the CPU")
    other = next((type(layer).__name__ for layer in cache.layers if type(layer) not in _LAYERS), None)
    if other is not None:
        raise NotRecordable(f"the cache has layers of the kind {other}")
    if any(_seen(layer) >= layer.max_cache_len for layer in _layers(cache) if _slides(layer)):
        raise NotRecordable("a sliding window is full, and a step moves all of it")


def begun(cache: Cache) -> bool:
    """Whether a prompt was read into cache."""
    layers = [layer for layer in cache.layers if isinstance(layer, CacheLayerMixin)]
    return bool(layers) and all(layer.is_initialized for layer in layers)


def layout(cache: Cache, *, roomy: bool) -> Layout:
    """The layout of buffers for cache; roomy: with its length rounded up, where the layers take that."""
    return tuple(
        (type(layer), _size(layer, layer.keys, roomy), _size(layer, layer.values, roomy), layer.dtype, layer.device)
        for layer in _layers(cache)
    )


@dataclass(frozen=True)
class Place:
    """How far a cache was filled: by layer, the tokens as the device counts them, and as Python does (sliding)."""

    counters: list[Tensor]
    seen: list[int]


class CacheBuffers:
    """Keys and values [B, H, L, D] and counters of every layer, in a cache of its own."""

    def __init__(self, like: Cache, wanted: Layout) -> None:
        # ordinary tensors, which both modes of inference may write to
        with torch.inference_mode(False):
            self.cache = copy.copy(like)
            layers: list[Any] = [_fresh(layer, *sizes[1:3]) for layer, sizes in zip(_layers(like), wanted, strict=True)]
            self.cache.layers = layers
        self._layers = layers
        self._borrower: weakref.ref[Cache] | None = None

    @property
    def lent_to(self) -> Cache | None:
        """The cache whose contents are here."""
        return None if self._borrower is None else self._borrower()

    def serves(self, cache: Cache) -> bool:
        """Whether cache is the borrower, and holds all of these tensors still: beam search replaces some."""
        return self.lent_to is cache and all(
            theirs.keys is mine.keys
            and theirs.values is mine.values
            and theirs.cumulative_length is mine.cumulative_length
            for mine, theirs in zip(self._layers, _layers(cache), strict=True)
        )

    def lend(self, cache: Cache) -> None:
        """Move cache in here; a cache that was here before gets copies."""
        if self.serves(cache):
            return
        before = self.lent_to
        if before is not None and before is not cache:
            for mine, theirs in zip(self._layers, _layers(before), strict=True):
                _part(mine, theirs)
        for mine, theirs in zip(self._layers, _layers(cache), strict=True):
            _move(mine, theirs)
        self._borrower = weakref.ref(cache)

    def place(self) -> Place:
        """Where the buffers' own cache stands, which is where the borrower does."""
        self.follow()
        layers = self._layers
        return Place([layer.cumulative_length.clone() for layer in layers], [_seen(layer) for layer in layers])

    def back_to(self, place: Place) -> None:
        """Let the buffers stand at place again; a step from there writes over what an earlier one wrote."""
        for layer, counter, seen in zip(self._layers, place.counters, place.seen, strict=True):
            layer.cumulative_length.copy_(counter)
            if _slides(layer):
                layer.cumulative_length_int = seen

    def follow(self) -> None:
        """Take over what the borrower has counted in Python."""
        self._count(self.lent_to, self.cache, 0)

    def advance(self) -> None:
        """Let the borrower count a token in Python, where a replayed step has counted it on the device alone."""
        self._count(self.lent_to, self.lent_to, 1)

    @staticmethod
    def _count(source: Cache | None, target: Cache | None, more: int) -> None:
        assert source is not None and target is not None, "nobody has borrowed the buffers"
        for theirs, mine in zip(_layers(source), _layers(target), strict=True):
            if _slides(mine):
                mine.cumulative_length_int = _seen(theirs) + more


def _layers(cache: Cache) -> list[Any]:
    # of kinds that check let pass, which transformers' own type does not know
    return cache.layers


def _slides(layer: Any) -> bool:
    return isinstance(layer, StaticSlidingWindowLayer)


def _seen(layer: Any) -> int:
    return int(layer.cumulative_length_int) if _slides(layer) else 0


def _size(layer: Any, tensor: Tensor, roomy: bool) -> tuple[int, ...]:
    batch, heads, length, width = tensor.shape
    # a window's length is part of what its layer computes
    if roomy and type(layer) is StaticLayer:
        length = -(-length // _ROUNDED_TO) * _ROUNDED_TO
    return batch, heads, length, width


def _fresh(layer: Any, keys: tuple[int, ...], values: tuple[int, ...]) -> Any:
    made = copy.copy(layer)
    made.keys = torch.zeros(keys, dtype=layer.dtype, device=layer.device)
    made.values = torch.zeros(values, dtype=layer.dtype, device=layer.device)
    made.cumulative_length = torch.zeros_like(layer.cumulative_length)
    made.max_cache_len = keys[2]
    return made


def _move(mine: Any, theirs: Any) -> None:
    for name in ("keys", "values"):
        target, source = getattr(mine, name), getattr(theirs, name)
        if source is not target:
            length = source.shape[2]
            target[:, :, :length].copy_(source)
            # masked, but nothing times a value that is not finite is not zero
            target[:, :, length:].zero_()
        setattr(theirs, name, target)
    if theirs.cumulative_length is not mine.cumulative_length:
        mine.cumulative_length.copy_(theirs.cumulative_length)
    theirs.cumulative_length = mine.cumulative_length
    theirs.max_cache_len = mine.max_cache_len


def _part(mine: Any, theirs: Any) -> None:
    for name in ("keys", "values", "cumulative_length"):
        if getattr(theirs, name) is getattr(mine, name):
            setattr(theirs, name, getattr(mine, name).clone())
