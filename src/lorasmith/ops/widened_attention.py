"""Attention computed in f32 that keeps its 16-bit operands for the backward pass, and widens them there again.

For processors without 16-bit instructions: PyTorch's own attention would keep f32 copies of queries, keys, values and
output. Of these only the operands as they came and the narrow output are kept here, which the next layer keeps as well.
Axes: B batch, H heads, G heads that share a key, T queries, K keys, D size of a head.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

from lorasmith.errors import FormatError

_FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def widened_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None, causal: bool
) -> Tensor:
    """softmax(scaling q k^T + mask) v of query [B, H, T, D], key and value [B, H / G, K, D] on a CPU -> [B, T, H, D].

    The output is rounded to the type of query, and gradients are computed from the rounded one. scaling is 1 / sqrt(D)
    by default; mask is additive, or True where a key is seen.
    Raises FormatError for heads that do not share keys evenly, and a mask that requires a gradient: it gets none.
    Source: FlashAttention, arXiv 2205.14135.
    """
    if query.shape[1] % key.shape[1] or key.shape[:3] != value.shape[:3]:
        raise FormatError(
            f"query {list(query.shape)}, key {list(key.shape)}, value {list(value.shape)}: the heads of query must be "
            "a multiple of those of key and value, which are alike"
        )
    if mask is not None and mask.requires_grad and torch.is_grad_enabled():
        raise FormatError("the mask requires a gradient, which this attention does not make; use PyTorch's own")
    if not query.numel() or not key.numel():
        # nothing to widen, and the kernel below divides by these sizes
        return scaled_dot_product_attention(query, key, value, enable_gqa=True).transpose(1, 2)
    output: Tensor = _Attention.apply(query, key, value, _added(mask), scaling, causal)
    return output


def _added(mask: Tensor | None) -> Tensor | None:
    if mask is None or mask.dtype != torch.bool:
        return None if mask is None else mask.float()
    return torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, float("-inf"))


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None, causal: bool
    ) -> Tensor:
        groups = query.shape[1] // key.shape[1]
        wide = (_wide(query), _repeated(key, groups), _repeated(value, groups))
        output_BHTD, log_sums = _FORWARD(*wide, 0.0, causal, attn_mask=mask, scale=scaling)
        output_BTHD = output_BHTD.transpose(1, 2).to(query.dtype, memory_format=torch.contiguous_format)
        ctx.save_for_backward(query, key, value, output_BTHD, log_sums, mask)
        ctx.scaling, ctx.causal = scaling, causal
        return output_BTHD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BTHD: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output_BTHD, log_sums, mask = ctx.saved_tensors
        groups = query.shape[1] // key.shape[1]
        wide = (_wide(query), _repeated(key, groups), _repeated(value, groups))
        output, grad = (each.float().transpose(1, 2) for each in (output_BTHD, grad_BTHD))
        grads = _BACKWARD(grad, *wide, output, log_sums, 0.0, ctx.causal, attn_mask=mask, scale=ctx.scaling)
        grad_query, grad_key, grad_value = grads
        return (
            grad_query.to(query.dtype),
            _summed(grad_key, groups).to(key.dtype),
            _summed(grad_value, groups).to(value.dtype),
            *(None, None, None),
        )


def _wide(heads: Tensor) -> Tensor:
    wide = heads.float()
    # the kernel takes a head's elements to lie side by side
    return wide if wide.stride(-1) == 1 else wide.contiguous()


def _repeated(heads: Tensor, groups: int) -> Tensor:
    wide = _wide(heads)
    return wide if groups == 1 else wide.repeat_interleave(groups, 1)


def _summed(grad: Tensor, groups: int) -> Tensor:
    return grad if groups == 1 else grad.unflatten(1, (-1, groups)).sum(2)
