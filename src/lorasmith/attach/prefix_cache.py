"""A prefix as transformers' attention layers take it: as keys and values that a cache holds already."""

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, EncoderDecoderCache

from lorasmith.errors import AttachError
from lorasmith.methods import Prefix


class PrefixLayer(DynamicLayer):
    """One layer's prefix before the keys and values that it is given, which it does not keep.

    So a layer that is recomputed in the backward finds what it found in the forward.
    """

    def __init__(self, prefix: Prefix, index: int) -> None:
        super().__init__()
        self.prefix, self.index = prefix, index

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Keys and values [B, H, V + T, W] for those [B, H, T, W] of the tokens."""
        keys, values = self.prefix.keys_and_values(self.index)
        return _before(keys, key_states), _before(values, value_states)

    def get_seq_length(self) -> int:
        """The tokens of the prefix."""
        return self.prefix.tokens


class PrefixCache(Cache):
    """The prefix for a call that keeps no cache: training and scoring."""

    def __init__(self, prefix: Prefix) -> None:
        super().__init__(layers=[PrefixLayer(prefix, index) for index in range(prefix.layers)])


def passing_cache(prefix: Prefix, config: PreTrainedConfig) -> Cache:
    """A PrefixCache as a model of this config takes it; cross-attention has no prefix."""
    cache = PrefixCache(prefix)
    return EncoderDecoderCache(cache, DynamicCache(config=config)) if config.is_encoder_decoder else cache


def growing_cache(config: PreTrainedConfig) -> Cache:
    """The empty cache that a model of this config would begin with."""
    if config.is_encoder_decoder:
        return EncoderDecoderCache(DynamicCache(config=config), DynamicCache(config=config))
    return DynamicCache(config=config)


def passes(cache: object) -> bool:
    """Whether cache is a passing one, which is of no use after the call."""
    own = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
    return isinstance(own, PrefixCache)


def fill(cache: Cache, prefix: Prefix, batch: int, dtype: torch.dtype) -> None:
    """Put the prefix, in dtype, into an empty cache of batch rows, where it stays before what generation adds.

    Raises AttachError for a cache of a fixed length, which has no room for it.
    """
    if cache.is_compileable:
        raise AttachError(
            f"a {type(cache).__name__} has no room for a prefix; generate with the default, dynamic cache"
        )
    own = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
    for index in range(prefix.layers):
        keys, values = prefix.keys_and_values(index)
        own.update(keys.to(dtype).expand(batch, -1, -1, -1), values.to(dtype).expand(batch, -1, -1, -1), index)


def _before(mine_HVW: Tensor, real_BHTW: Tensor) -> Tensor:
    batch, heads, _, width = real_BHTW.shape
    if (mine_HVW.shape[0], mine_HVW.shape[2]) != (heads, width):
        raise AttachError(
            f"the prefix has {mine_HVW.shape[0]} heads of width {mine_HVW.shape[2]}, the model's keys {heads} of "
            f"{width}; set num_attention_heads={heads} and token_dim={heads * width}"
        )
    return torch.cat([mine_HVW.to(real_BHTW).expand(batch, -1, -1, -1), real_BHTW], 2)
