"""Prefixes on a transformers model: the acting one stands in the cache that every call begins with.

Positions and masks are moved on by its length, as in PEFT. Two things that a cache does not give are added: layers that
are recomputed in the backward, to which transformers gives no cache, find the prefix all the same; and every segment of
a packed row sees it (`models/packed_attention.py`).
"""

import inspect
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput

from lorasmith.attach.prefix_cache import PrefixCache, fill, growing_cache, passes, passing_cache
from lorasmith.attach.virtual_tokens import named_arguments, real_keys
from lorasmith.errors import AttachError
from lorasmith.methods import Prefix, layer_spec
from lorasmith.models.packed_attention import PACKED, carries_segments


class Acting(Protocol):
    """Where the prefix that acts now is found."""

    @property
    def prefix(self) -> Prefix | None:
        """The prefix that acts now."""


class Prefixes:
    """Gives every call of the backbone (of an encoder-decoder, its decoder) a cache that begins with the prefix."""

    def __init__(self, model: PreTrainedModel, acting: Acting) -> None:
        self.acting, self.config = acting, model.config
        self.generates = bool(model.can_generate() and getattr(model.config, "use_cache", False))
        embedding = layer_spec(model.get_input_embeddings())
        self.dtype = model.dtype if embedding is None else embedding.dtype
        backbone = model.get_decoder() if model.config.is_encoder_decoder else model.base_model
        self.layers = [_Recomputed(layer, acting) for layer in _layers(backbone)]
        self.handles: list[RemovableHandle] = [
            backbone.register_forward_pre_hook(self._enter, with_kwargs=True),
            backbone.register_forward_hook(self._leave, with_kwargs=True),
            *(handle for layer in self.layers for handle in layer.handles),
        ]

    def _enter(self, backbone: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        prefix = self.acting.prefix
        if prefix is None:
            return None
        kwargs = named_arguments(backbone, args, kwargs)
        tokens = kwargs["inputs_embeds"] if kwargs.get("input_ids") is None else kwargs["input_ids"]
        kwargs["past_key_values"] = self._cache(backbone, prefix, tokens.shape[0], kwargs)
        self._move_segments(prefix.tokens, kwargs)
        if isinstance(kwargs.get("attention_mask"), Tensor):
            kwargs["attention_mask"] = _seen(kwargs["attention_mask"], prefix.tokens)
        if isinstance(kwargs.get("position_ids"), Tensor):
            kwargs["position_ids"] = kwargs["position_ids"] + prefix.tokens
        return (), kwargs

    def _cache(self, backbone: nn.Module, prefix: Prefix, batch: int, kwargs: dict[str, Any]) -> Any:
        past, wanted = kwargs.get("past_key_values"), kwargs.get("use_cache")
        if backbone.training and getattr(backbone, "gradient_checkpointing", False):
            self._require_entries(backbone)
            return passing_cache(prefix, self.config)
        if wanted is None:
            wanted = self.generates and not backbone.training
        if past is None and not wanted:
            return passing_cache(prefix, self.config)
        past = growing_cache(self.config) if past is None else past
        if past.get_seq_length() == 0:
            fill(past, prefix, batch, self.dtype)
        return past

    def _require_entries(self, backbone: nn.Module) -> None:
        if not any(layer.recomputes for layer in self.layers):
            raise AttachError(
                f"{type(backbone).__name__} recomputes its layers where no prefix reaches them; set "
                "gradient_checkpointing: false"
            )

    def _move_segments(self, count: int, kwargs: dict[str, Any]) -> None:
        bounds = kwargs.get("cu_seq_lens_q")
        if bounds is None:
            return
        if self.config.get_text_config()._attn_implementation != PACKED:
            raise AttachError("a prefix on packed rows needs lorasmith's own attention: enable_packing(model)")
        kwargs["cu_seq_lens_q"] = bounds + count

    def _leave(self, backbone: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        prefix = self.acting.prefix
        if prefix is None:
            return None
        if not isinstance(output, ModelOutput):
            raise AttachError("a prefix is taken off a backbone's output by name; leave return_dict at True")
        # T tokens, K keys, B batch, H heads
        total = int(kwargs["past_key_values"].get_seq_length())
        if passes(kwargs["past_key_values"]):
            total += output[0].shape[1]
            if output.get("past_key_values") is not None:
                output["past_key_values"] = None
        if "attentions" in output:
            weights = output["attentions"]
            output["attentions"] = tuple(
                layer_BHTK if layer_BHTK is None else real_keys(layer_BHTK, prefix.tokens, total)
                for layer_BHTK in weights
            )
        return output


class _Recomputed:
    """A layer that may be recomputed in the backward, when transformers takes every cache from it."""

    def __init__(self, layer: GradientCheckpointingLayer, acting: Acting) -> None:
        self.layer, self.acting = layer, acting
        self.handles = [layer.register_forward_pre_hook(self._drop, with_kwargs=True)]
        for module in _attentions(layer):
            self.handles.append(module.register_forward_pre_hook(self._restore, with_kwargs=True))

    @property
    def recomputes(self) -> bool:
        """Whether it is recomputed now, and has attention that a prefix can enter."""
        return self.layer.gradient_checkpointing and self.layer.training and len(self.handles) > 1

    def _drop(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # transformers would, with a warning that means another kind of cache
        if self.recomputes and self.acting.prefix is not None and "past_key_values" in kwargs:
            kwargs["past_key_values"] = None
        return args, kwargs

    def _restore(self, attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        prefix = self.acting.prefix
        others = ("past_key_values", "key_value_states", "encoder_hidden_states")
        if prefix is not None and self.recomputes and all(kwargs.get(name) is None for name in others):
            kwargs["past_key_values"] = PrefixCache(prefix)
        return args, kwargs


def _layers(backbone: nn.Module) -> list[GradientCheckpointingLayer]:
    return [module for module in backbone.modules() if isinstance(module, GradientCheckpointingLayer)]


def _attentions(layer: nn.Module) -> Iterator[nn.Module]:
    """The modules inside layer that put keys and values into a cache: they know their layer's number."""
    for module in layer.modules():
        takes = "past_key_values" in inspect.signature(module.forward).parameters
        if module is not layer and takes and isinstance(getattr(module, "layer_idx", None), int):
            yield module


def _seen(mask: Tensor, count: int) -> Tensor:
    """The mask with count keys more in front, which all are seen; segments begin behind them."""
    if carries_segments(mask):
        return mask + count
    if mask.dim() == 2:
        return torch.cat([mask.new_ones(mask.shape[0], count), mask], 1)
    # a mask proper is added to the scores, or says what is seen
    shape = (*mask.shape[:-1], count)
    return torch.cat([mask.new_ones(shape) if mask.dtype == torch.bool else mask.new_zeros(shape), mask], -1)
