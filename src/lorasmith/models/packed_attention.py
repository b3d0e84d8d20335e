"""Attention that stays inside each segment of a packed row, through transformers' AttentionInterface.

A packed row holds several sequences end to end; cu_seqlens [segments + 1] says where each begins and the last ends.
They travel to the attention layers as a four-dimensional attention mask, which transformers hands down as it is, so
that no T x T mask is ever built. Without such a mask the function is transformers' own sdpa. On a GPU one kernel takes
all segments (segment_attention.py), elsewhere each is a call of sdpa.
Keys before the first segment (the P of a prefix) are seen by every segment; the bounds then begin at P instead of 0.
Axes: B batch (1 when packed), H heads, T tokens, L tokens of one segment, S segments, P shared keys.
"""

import inspect
import logging
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from lorasmith.errors import DataError, ModelError
from lorasmith.models.each_segment import Call
from lorasmith.models.segments import Segments
from lorasmith.models.traced_segments import attended, traced_segments
from lorasmith.models.trial import trial
from lorasmith.ops.autocast import autocast_inputs

logger = logging.getLogger(__name__)

PACKED = "lorasmith_packed"
"""The name of this attention in a model's configuration."""

_RECURRENT_LAYERS = ("mamba", "mamba2", "linear_attention", "recurrent", "conv", "rwkv")
_CAPS = ("attn_logit_softcapping", "attn_logit_softcap")


def segment_mask(cu_seqlens: Tensor) -> Tensor:
    """The attention_mask [1, 1, 1, S + 1] that carries cu_seqlens [S + 1] (int32) to the attention layers.

    It lies on the CPU, because each layer reads it there; what kernels want of it on their device is made once.
    """
    return cu_seqlens.to(device="cpu", dtype=torch.int32)[None, None, None]


def carries_segments(attention_mask: object) -> bool:
    """Whether attention_mask is one of segment_mask's: masks proper are bool or float, or have two dimensions."""
    return isinstance(attention_mask, Tensor) and attention_mask.dim() == 4 and attention_mask.dtype == torch.int32


def enable_packing(model: nn.Module) -> str | None:
    """Give model the packed attention; or leave it as it was and return why it cannot have it."""
    reason = _obvious_reason(model)
    if reason is not None:
        return reason
    assert isinstance(model, PreTrainedModel)
    before = model.config._attn_implementation
    model.set_attn_implementation(PACKED)
    reason = _trial(model)
    if reason is not None:
        model.set_attn_implementation(before)
    return reason


def supports_packing(model: nn.Module) -> str | None:
    """Why sequences cannot be packed for this model, or None where they can; the model is left as it was."""
    if _obvious_reason(model) is not None:
        return _obvious_reason(model)
    assert isinstance(model, PreTrainedModel)
    before = model.config._attn_implementation
    reason = enable_packing(model)
    model.set_attn_implementation(before)
    return reason


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    **keywords: object,
) -> tuple[Tensor, None]:
    """Attention of query [B, H, T, head], key and value [B, H or fewer, P + T, head] inside each segment.

    Segments come from segment_mask as attention_mask, or from transformers' cu_seq_lens_q. Returns [B, T, H, head].
    Raises ModelError for a soft cap, sink or position bias, which sdpa does not know.
    """
    unknown = [name for name in ("softcap", "s_aux", "position_bias") if keywords.get(name) is not None]
    if unknown:
        raise ModelError(f"packed attention does not know {unknown[0]}; train this model with padding_free: false")
    causal = bool(getattr(module, "is_causal", True)) if is_causal is None else is_causal
    call = Call(module, dropout, scaling, causal)
    segments = _segments(attention_mask, cu_seq_lens_q)
    if segments is None:
        return call(query, key, value, attention_mask), None
    if torch.compiler.is_compiling():
        return _traced(call, query, key, value, segments, sliding_window), None
    where = Segments(tuple(segments.tolist()), causal, sliding_window)
    if query.shape[0] != 1 or where.bounds[-1] != key.shape[2] or where.tokens != query.shape[2]:
        raise DataError(
            f"segments end at {where.bounds[-1]} but queries are {tuple(query.shape)} and keys {tuple(key.shape)}; "
            "pack into one row, without a cache"
        )
    return attended(call, *_alike(query, key, value), where), None


def _traced(call: Call, query: Tensor, key: Tensor, value: Tensor, segments: Tensor, window: int | None) -> Tensor:
    """The same in a compiler's sight, which sees neither bounds nor segments."""
    if call.dropout:
        raise ModelError("packed attention with dropout cannot be compiled; set training.compile: false")
    how: Any = {"causal": call.causal, "window": window, "scaling": call.scaling}
    return traced_segments(*_alike(query, key, value), segments, **how)


def _alike(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All in one type: autocast's, where it is on, else that of query."""
    query, _ = autocast_inputs(query, None)
    return query, key.to(query.dtype), value.to(query.dtype)


def _segments(attention_mask: Tensor | None, cu_seq_lens: Tensor | None) -> Tensor | None:
    if attention_mask is not None and carries_segments(attention_mask):
        return attention_mask.flatten()
    return cu_seq_lens


def register() -> None:
    """Make this attention known to transformers by its name; a second call does nothing."""
    AttentionInterface.register(PACKED, packed_attention)
    AttentionMaskInterface.register(PACKED, sdpa_mask)


def _obvious_reason(model: nn.Module) -> str | None:
    """Why packing cannot work, as far as class and configuration tell."""
    if not isinstance(model, PreTrainedModel):
        return "it is not a transformers model"
    config = model.config.get_text_config()
    kinds = {str(kind) for kind in config.to_dict().get("layer_types") or ()}
    if model._is_stateful or kinds & set(_RECURRENT_LAYERS):
        return "it carries a recurrent state from token to token"
    if "chunked_attention" in kinds:
        return "its attention is cut into chunks by absolute position"
    if model.config.is_encoder_decoder:
        return "it is an encoder-decoder"
    if "position_ids" not in inspect.signature(model.base_model.forward).parameters:
        return "it takes no position ids, so positions cannot restart in each segment"
    if any(config.to_dict().get(name) for name in _CAPS):
        return "it caps its attention scores, which sdpa does not know"
    if not model._supports_sdpa or not model._can_set_attn_implementation():
        return "its attention cannot be replaced through transformers' AttentionInterface"
    return None


def _trial(model: PreTrainedModel) -> str | None:
    """Why a packed row of two short sequences does not give what each gives alone, or None where it does."""
    device = next(model.get_input_embeddings().parameters()).device
    if device.type == "meta":
        return "its weights are on the meta device, where nothing can be tried"
    backbone = model.base_model
    tokens = torch.arange(7, device=device)[None] % model.config.get_text_config().vocab_size
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3]], device=device)
    try:
        with trial(model, device):
            mask = segment_mask(torch.tensor([0, 3, 7]))
            packed = backbone(input_ids=tokens, position_ids=positions, attention_mask=mask).last_hidden_state
            alone = torch.cat([backbone(input_ids=part).last_hidden_state for part in tokens.split([3, 4], 1)], 1)
    except (ModelError, TypeError, ValueError, RuntimeError, IndexError) as error:
        logger.debug("packing was tried and failed", exc_info=error)
        return f"its forward refused a packed row of two sequences ({type(error).__name__})"
    # same products in another order: some roundings of the states' own dtype for each layer
    bound = 64 * torch.finfo(alone.dtype).eps * float(alone.abs().max())
    if not bool(((packed - alone).abs() <= bound).all()):
        return "a packed row does not give what its sequences give alone"
    return None


# a model that was pickled with this attention finds it by its name only, so importing the package has to enter it
register()
