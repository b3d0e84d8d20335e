"""Attention inside the segments of a packed row by PyTorch's own attention, a call for each length or segment.

Axes: H heads, T tokens, L tokens of one segment, S segments, P shared keys before the T.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lorasmith.models.segments import Segments
from lorasmith.ops.autocast import autocast_inputs
from lorasmith.ops.precision import product_dtype, without_autocast
from lorasmith.ops.widened_attention import widened_attention


class Call:
    """transformers' sdpa with what is the same for all segments."""

    def __init__(self, module: nn.Module, dropout: float, scaling: float | None, causal: bool) -> None:
        self.module, self.dropout, self.scaling, self.causal = module, dropout, scaling, causal

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        # autocast's type first: rotated f32 queries meet 16-bit values under it
        query, _ = autocast_inputs(query, None)
        wide = product_dtype(query.dtype, query.device)
        if wide != query.dtype and self._keeps_narrow(query, key, value, mask):
            causal = self.causal and mask is None and query.shape[2] > 1
            with without_autocast(query.device):
                narrow = (query, key.to(query.dtype), value.to(query.dtype))
                return widened_attention(*narrow, mask, self.scaling, causal)
        # sdpa takes masks in the type of its queries alone
        mask = mask if mask is None or mask.dtype == torch.bool else mask.to(wide)
        with without_autocast(query.device):
            return sdpa_attention_forward(
                self.module,
                query.to(wide),
                key.to(wide),
                value.to(wide),
                mask,
                dropout=self.dropout,
                scaling=self.scaling,
                is_causal=self.causal,
            )[0].to(query.dtype)

    def _keeps_narrow(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> bool:
        """Whether something is kept for a backward pass, and the attention that keeps it narrow can do the rest."""
        learns = torch.is_grad_enabled() and any(each.requires_grad for each in (query, key, value))
        learned_mask = mask is not None and mask.requires_grad
        return learns and not learned_mask and self.dropout == 0.0 and query.shape[-1] == value.shape[-1]


def each_segment(call: Call, query: Tensor, key: Tensor, value: Tensor, where: Segments) -> Tensor:
    """Attention [1, T, H, head], a call for each segment; segments of one length are rows of a single call."""
    shared, lengths = where.shared, set(where.lengths)
    if len(lengths) == 1:
        (length,) = lengths
        rows = (_as_rows(key, length, shared), _as_rows(value, length, shared))
        return call(_as_rows(query, length, 0), *rows, _mask(length, where, query)).flatten(0, 1)[None]
    parts = [
        call(
            query[:, :, start - shared : end - shared],
            _with_shared(key, start, end, shared),
            _with_shared(value, start, end, shared),
            _mask(end - start, where, query),
        )
        for start, end in pairwise(where.bounds)
    ]
    return torch.cat(parts, 1)


def _as_rows(packed: Tensor, length: int, shared: int) -> Tensor:
    """[1, H, P + S * L, head] -> [S, H, P + L, head]: segments of one length are a batch, each with the P first."""
    rows = packed[0, :, shared:].unflatten(1, (-1, length)).transpose(0, 1)
    if not shared:
        return rows
    return torch.cat([packed[:, :, :shared].expand(rows.shape[0], -1, -1, -1), rows], 2)


def _with_shared(packed: Tensor, start: int, end: int, shared: int) -> Tensor:
    own = packed[:, :, start:end]
    return torch.cat([packed[:, :, :shared], own], 2) if shared else own


def _mask(length: int, where: Segments, like: Tensor) -> Tensor | None:
    """Mask [1, 1, L, P + L] of what a segment's tokens see, or None where sdpa's own flag says it.

    The P shared keys are the positions before the segment, as far as a sliding window reaches them.
    """
    shared, window = where.shared, where.window
    slides = window is not None and shared + length > window
    if not slides and not (where.causal and shared):
        return None
    keys = torch.arange(shared + length, device=like.device)
    distance = keys[shared:, None] - keys
    seen = distance >= 0
    return (seen & (distance < window) if window is not None else seen)[None, None]
