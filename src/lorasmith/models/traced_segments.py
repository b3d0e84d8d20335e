"""Attention inside the segments of a packed row as one operation to a compiler.

The ways of attention read where segments end, in numbers, and a graph that held these numbers would serve one batch.
As an operation of its own the attention hides them: a graph then serves every row of its length. What the operation
cannot keep between its forward and its backward it makes again, which costs the attention's forward a second time.
Axes: H heads, T tokens, S segments, P shared keys before the T.
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lorasmith.models.each_segment import Call, each_segment
from lorasmith.models.segment_attention import attend, way
from lorasmith.models.segments import Segments
from lorasmith.ops.library import LIBRARY, define, implement_fake, implement_reference

_HOW = "Tensor query, Tensor key, Tensor value, Tensor bounds, bool causal, int? window, float? scaling"

define("segment_attention", f"({_HOW}) -> Tensor")
define("segment_attention_backward", f"(Tensor grad, {_HOW}) -> (Tensor, Tensor, Tensor)")


def traced_segments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bounds: Tensor,
    *,
    causal: bool,
    window: int | None,
    scaling: float | None,
) -> Tensor:
    """Attention [1, T, H, head] of query [1, H, T, head], key and value [1, H or fewer, P + T, head], all of one type.

    bounds [S + 1] lie on the CPU, as segment_mask gives them.
    """
    return torch.ops.lorasmith.segment_attention.default(query, key, value, bounds, causal, window, scaling)


def attended(call: Call, query: Tensor, key: Tensor, value: Tensor, where: Segments) -> Tensor:
    """Attention [1, T, H, head] by the way that serves here."""
    at_once = attend(way(query, value, call.dropout), query, key, value, where, call.scaling)
    return each_segment(call, query, key, value, where) if at_once is None else at_once


def _forward(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, causal: bool, window: int | None, scaling: float | None
) -> Tensor:
    # what transformers' sdpa reads of the module
    module: Any = SimpleNamespace(num_key_value_groups=query.shape[1] // key.shape[1])
    where = Segments(tuple(bounds.tolist()), causal, window)
    return attended(Call(module, 0.0, scaling, causal), query, key, value, where).contiguous()


def _backward(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *how: Any) -> tuple[Tensor, Tensor, Tensor]:
    with torch.enable_grad():
        inputs = [each.detach().requires_grad_() for each in (query, key, value)]
        output = _forward(inputs[0], inputs[1], inputs[2], *how)
    grads = torch.autograd.grad(output, inputs, grad)
    return grads[0].contiguous(), grads[1].contiguous(), grads[2].contiguous()


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, causal, window, scaling = inputs
    ctx.save_for_backward(*tensors)
    ctx.how = (causal, window, scaling)


@once_differentiable
def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grads = torch.ops.lorasmith.segment_attention_backward.default(grad, *ctx.saved_tensors, *ctx.how)
    return *grads, None, None, None, None


def _fake_forward(query: Tensor, key: Tensor, value: Tensor, *how: Any) -> Tensor:
    batch, heads, tokens, _ = query.shape
    return query.new_empty(batch, tokens, heads, value.shape[-1])


def _fake_backward(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *how: Any) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


implement_reference("segment_attention", _forward)
implement_reference("segment_attention_backward", _backward)
implement_fake("segment_attention", _fake_forward)
implement_fake("segment_attention_backward", _fake_backward)
torch.library.register_autograd("lorasmith::segment_attention", _gradients, setup_context=_keep, lib=LIBRARY)
