"""Soft prompts on a transformers model: virtual tokens enter below the backbone and leave above it unseen.

Those of an encoder-decoder enter its encoder and stay, for the decoder to look at.
"""

import inspect
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from lorasmith.errors import AttachError
from lorasmith.methods import Prompt
from lorasmith.models.packed_attention import carries_segments


class Acting(Protocol):
    """Where the prompt that acts now is found."""

    @property
    def virtual(self) -> Prompt | None:
        """The prompt that puts virtual tokens before the input now."""


class VirtualTokens:
    """Puts the acting prompt's virtual tokens before every input of the backbone, and cuts them off its output.

    So the head, the loss and generation see as many positions as there are real tokens, and so do hidden states and
    attentions (whose rows then sum to what real tokens got). With a filled cache only the attention mask and the
    positions are moved on.
    """

    def __init__(self, model: nn.Module, embedding: nn.Module, acting: Acting) -> None:
        self.embedding, self.acting = embedding, acting
        self.handles: list[RemovableHandle] = []
        if isinstance(model, PreTrainedModel) and model.config.is_encoder_decoder:
            self._before(model.get_encoder(), self._extend)
            self._before(model.get_decoder(), self._extend_cross_attention)
            return
        backbone = getattr(model, "base_model", model)
        self._before(backbone, self._extend)
        self.handles.append(backbone.register_forward_hook(self._cut, with_kwargs=True))

    def _before(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        self.handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def _extend(self, backbone: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        prompt = self.acting.virtual
        if prompt is None:
            return None
        kwargs = named_arguments(backbone, args, kwargs)
        if kwargs.get("cu_seq_lens_q") is not None or carries_segments(kwargs.get("attention_mask")):
            raise AttachError("soft prompts do not work on packed batches; train with packing: false")
        # virtual_VD; V virtual tokens, D model width
        virtual_VD = prompt.embeddings()[: prompt.tokens]
        ids, embeds = kwargs.pop("input_ids", None), kwargs.pop("inputs_embeds", None)
        real_BTD = self.embedding(ids) if embeds is None else embeds
        batch, count = real_BTD.shape[0], prompt.tokens
        past = kwargs.get("past_key_values")
        first = past is None or past.get_seq_length() == 0
        if first:
            prefix = virtual_VD.to(real_BTD.dtype).expand(batch, -1, -1)
            kwargs["inputs_embeds"] = torch.cat([prefix, real_BTD], 1)
        else:
            kwargs["inputs_embeds"] = real_BTD
        if isinstance(kwargs.get("attention_mask"), Tensor):
            kwargs["attention_mask"] = _seen(kwargs["attention_mask"], count)
        if isinstance(kwargs.get("position_ids"), Tensor):
            kwargs["position_ids"] = _positions(kwargs["position_ids"], count, first)
        if isinstance(kwargs.get("token_type_ids"), Tensor):
            types = kwargs["token_type_ids"]
            kwargs["token_type_ids"] = torch.cat([types.new_zeros(batch, count), types], 1)
        return (), kwargs

    def _extend_cross_attention(self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        prompt, mask = self.acting.virtual, kwargs.get("encoder_attention_mask")
        states_BTD = kwargs.get("encoder_hidden_states")
        if prompt is None or not isinstance(mask, Tensor) or not isinstance(states_BTD, Tensor):
            return None
        # states that were made without the prompt have a mask that fits
        if mask.shape[1] + prompt.tokens == states_BTD.shape[1]:
            kwargs["encoder_attention_mask"] = _seen(mask, prompt.tokens)
        return args, kwargs

    def _cut(self, backbone: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        prompt = self.acting.virtual
        if prompt is None:
            return None
        if not isinstance(output, ModelOutput):
            raise AttachError("soft prompts find the tokens in a backbone's output by name; leave return_dict at True")
        count = prompt.tokens
        # after _extend the backbone was called with embeddings only
        asked = kwargs["inputs_embeds"].shape[1]
        past = kwargs.get("past_key_values")
        total = asked if past is None else int(past.get_seq_length())
        virtual = count if output[0].shape[1] == asked == total > count else 0
        if virtual:
            key = next(iter(output.keys()))
            output[key] = output[key][:, virtual:]
        # B batch, H heads, T tokens, K keys, D model width
        cuts: dict[str, Callable[[Tensor], Tensor]] = {
            "hidden_states": lambda state_BTD: state_BTD[:, virtual:],
            "attentions": lambda weights_BHTK: real_keys(weights_BHTK[:, :, virtual:], count, total),
            "cross_attentions": lambda weights_BHTK: weights_BHTK[:, :, virtual:],
        }
        for key in cuts.keys() & output.keys():
            # a layer that was not asked for is None
            output[key] = tuple(layer if layer is None else cuts[key](layer) for layer in output[key])
        return output


def named_arguments(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a call of module, by name."""
    return dict(zip(inspect.signature(module.forward).parameters, args, strict=False)) | kwargs


def _seen(mask: Tensor, count: int) -> Tensor:
    """The mask [B, T] with count tokens more in front, which all are seen."""
    return torch.cat([mask.new_ones(mask.shape[0], count), mask], 1)


def _positions(positions: Tensor, count: int, first: bool) -> Tensor:
    moved = positions + count
    if not first:
        return moved
    virtual = torch.arange(count, device=positions.device).expand(positions.shape[0], -1)
    return torch.cat([virtual, moved], 1)


def real_keys(weights_BHTK: Tensor, count: int, total: int) -> Tensor:
    """The weights without those of the count virtual tokens that come first of total.

    A window that slides keeps fewer keys than that, and has dropped some or all of the virtual ones.
    """
    dropped = max(0, total - weights_BHTK.shape[-1])
    return weights_BHTK[..., max(0, count - dropped) :]
