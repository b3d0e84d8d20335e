"""Soft prompts on a transformers model: virtual tokens enter below the backbone and leave above it unseen."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from lorasmith.errors import AttachError
from lorasmith.methods import Prompt


class PromptEncoder(nn.ModuleDict):
    """The prompts of all adapters, by name; a child of the model, so that they are its parameters."""


class Prompted:
    """Puts an adapter's virtual tokens before every input of the backbone, and cuts them off its output.

    So the head, the loss and generation see as many positions as there are real tokens, and so do hidden states and
    attentions (whose rows then sum to what real tokens got). With a filled cache only the attention mask and the
    positions are moved on.
    """

    def __init__(self, model: nn.Module) -> None:
        embed = getattr(model, "get_input_embeddings", None)
        if embed is None:
            raise AttachError(f"{type(model).__name__} has no input embeddings; soft prompts need a transformers model")
        self.model = model
        self.embedding: nn.Module = embed()
        self.encoder = PromptEncoder()
        model.add_module("prompt_encoder", self.encoder)
        self.active: str | None = None
        self.enabled = True
        backbone = getattr(model, "base_model", model)
        self._handles = [
            backbone.register_forward_pre_hook(self._extend, with_kwargs=True),
            backbone.register_forward_hook(self._cut, with_kwargs=True),
        ]

    def detach(self) -> None:
        """Take the hooks and the prompts off the model."""
        for handle in self._handles:
            handle.remove()
        del self.model._modules["prompt_encoder"]

    @property
    def prompt(self) -> Prompt | None:
        """The prompt that acts now."""
        if not self.enabled or self.active is None or self.active not in self.encoder:
            return None
        return self.of(self.active)

    def of(self, name: str) -> Prompt:
        """The prompt of one adapter."""
        found = self.encoder[name]
        assert isinstance(found, Prompt)
        return found

    def _extend(self, backbone: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.prompt is None:
            return None
        if args:
            kwargs = {"input_ids": args[0], **kwargs}
        if kwargs.get("cu_seq_lens_q") is not None:
            raise AttachError("soft prompts do not work on packed batches; train with packing: false")
        # virtual_VD; V virtual tokens, D model width
        virtual_VD = self.prompt.embeddings()
        ids, embeds = kwargs.pop("input_ids", None), kwargs.pop("inputs_embeds", None)
        real_BTD = self.embedding(ids) if embeds is None else embeds
        batch, count = real_BTD.shape[0], virtual_VD.shape[0]
        past = kwargs.get("past_key_values")
        first = past is None or past.get_seq_length() == 0
        if first:
            prefix = virtual_VD.to(real_BTD.dtype).expand(batch, -1, -1)
            kwargs["inputs_embeds"] = torch.cat([prefix, real_BTD], 1)
        else:
            kwargs["inputs_embeds"] = real_BTD
        if isinstance(kwargs.get("attention_mask"), Tensor):
            mask = kwargs["attention_mask"]
            kwargs["attention_mask"] = torch.cat([mask.new_ones(batch, count), mask], 1)
        if isinstance(kwargs.get("position_ids"), Tensor):
            kwargs["position_ids"] = _positions(kwargs["position_ids"], count, first)
        if isinstance(kwargs.get("token_type_ids"), Tensor):
            types = kwargs["token_type_ids"]
            kwargs["token_type_ids"] = torch.cat([types.new_zeros(batch, count), types], 1)
        return (), kwargs

    def _cut(self, backbone: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        if self.prompt is None:
            return None
        if not isinstance(output, ModelOutput):
            raise AttachError("soft prompts find the tokens in a backbone's output by name; leave return_dict at True")
        count = self.prompt.embeddings().shape[0]
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
            "attentions": lambda weights_BHTK: _real_keys(weights_BHTK[:, :, virtual:], count, total),
            "cross_attentions": lambda weights_BHTK: weights_BHTK[:, :, virtual:],
        }
        for key in cuts.keys() & output.keys():
            # a layer that was not asked for is None
            output[key] = tuple(layer if layer is None else cuts[key](layer) for layer in output[key])
        return output


def _positions(positions: Tensor, count: int, first: bool) -> Tensor:
    moved = positions + count
    if not first:
        return moved
    virtual = torch.arange(count, device=positions.device).expand(positions.shape[0], -1)
    return torch.cat([virtual, moved], 1)


def _real_keys(weights_BHTK: Tensor, count: int, total: int) -> Tensor:
    """The weights without those of the count virtual tokens that come first of total.

    A window that slides keeps fewer keys than that, and has dropped some or all of the virtual ones.
    """
    dropped = max(0, total - weights_BHTK.shape[-1])
    return weights_BHTK[..., max(0, count - dropped) :]
