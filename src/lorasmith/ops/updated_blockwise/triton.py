"""The update of a layer in training on a GPU, in the same product as its frozen weight; the fastest of three ways.

Bytes that a way moves beside W and the operands, in 16 bits, of N rows, O outputs and I inputs; forward, and backward:

- "buffer": W dense in a buffer, the vendor's product, and the update in a pass of its own, which reads and writes the
  result again: 4 N O, 4 N I.
- "stacked": one product of the vendor's. Forward [x | h] with [W | B], backward [g | u] with [W ; A]: the result is
  written once, but the operand is copied to stand beside h or u: 4 N I, 4 N O. So it should win forward where a layer
  widens (gate, up) and backward where it narrows (down), and lose on the others.
- "fused": W decoded by tiles inside the product, and the update added to the tile's sums: nothing, neither dense W; but
  each tile of rows decodes W anew. So it should win up to some hundreds of rows.

Sums are f32 and rounded once in "stacked" and "fused", twice in "buffer", as in the reference.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lorasmith.ops.blockwise.triton import dequantize_into_columns
from lorasmith.ops.blockwise_linear import matrix
from lorasmith.ops.blockwise_linear import reference as buffered
from lorasmith.ops.blockwise_linear.packed import PackedWeight, Update, packed_weight
from lorasmith.ops.blockwise_linear.triton import FEW_ROWS, chosen, few_rows
from lorasmith.ops.gpu import FLOATS, serve
from lorasmith.ops.low_rank.schema import add_update
from lorasmith.ops.precision import without_autocast
from lorasmith.ops.scratch import borrowed
from lorasmith.ops.updated_blockwise import reference

# so that rows of a stacked operand begin where vectors of 16 bytes do, as tensor cores want to read them
_STEP = 16


def updated_blockwise_linear(x: Tensor, bias: Tensor | None, h: Tensor, b: Tensor, *stored: Any) -> Tensor:
    """y [N, O] in x's type; see schema.py."""
    weight = _served(x, h, b, stored)
    if weight is None:
        return reference.updated_blockwise_linear(x, bias, h, b, *stored)
    x, update = x.contiguous(), Update(h.contiguous(), b.contiguous())
    if x.shape[0] <= FEW_ROWS:
        return few_rows(x, bias, weight, update)
    ways = {
        "fused": lambda: matrix.forward(x, bias, weight, update),
        "stacked": lambda: _stacked(x, bias, update.h, update.b, stored),
        "buffer": lambda: add_update(buffered.blockwise_linear(x, bias, *stored), update.h, update.b.T, x.dtype),
    }
    return chosen(f"forward of rank {b.shape[1]}", x, weight, ways)


def updated_blockwise_linear_backward(grad: Tensor, u: Tensor, a: Tensor, *stored: Any) -> Tensor:
    """The gradient of x [N, I] in the type of that of y [N, O]; see schema.py."""
    weight = _served(grad, u, a, stored)
    if weight is None:
        return reference.updated_blockwise_linear_backward(grad, u, a, *stored)
    grad, u, a = grad.contiguous(), u.contiguous(), a.contiguous()
    ways = {
        "fused": lambda: matrix.backward(grad, weight, u, a),
        "stacked": lambda: _stacked_backward(grad, u, a, stored),
        "buffer": lambda: add_update(buffered.blockwise_linear_backward(grad, *stored), u, a, grad.dtype),
    }
    return chosen(f"backward of rank {a.shape[0]}", grad, weight, ways)


def _served(values: Tensor, low: Tensor, factor: Tensor, stored: tuple[Any, ...]) -> PackedWeight | None:
    """The weight, where the kernels take it and the operands, which are of one type."""
    alike = values.dtype == low.dtype == factor.dtype
    return packed_weight(stored) if alike and values.dtype in FLOATS and values.numel() * low.numel() else None


def _stacked(x: Tensor, bias: Tensor | None, h: Tensor, b: Tensor, stored: tuple[Any, ...]) -> Tensor:
    """[x | h] [W | B]^T + bias."""
    (out_features, in_features), rank = stored[4], b.shape[1]
    width = in_features + _padded(rank)
    with borrowed((out_features, width), x.dtype, x.device) as both_OK, without_autocast(x.device):
        dequantize_into_columns(stored, both_OK[:, :in_features])
        both_OK[:, in_features : in_features + rank] = b
        both_OK[:, in_features + rank :] = 0
        return F.linear(_beside(x, h), both_OK, bias)


def _stacked_backward(grad: Tensor, u: Tensor, a: Tensor, stored: tuple[Any, ...]) -> Tensor:
    """[g | u] [W ; A]."""
    (out_features, in_features), rank = stored[4], a.shape[0]
    height = out_features + _padded(rank)
    with borrowed((height, in_features), grad.dtype, grad.device) as both_KI, without_autocast(grad.device):
        torch.ops.lorasmith.dequantize_blockwise_out.default(*stored, both_KI[:out_features])
        both_KI[out_features : out_features + rank] = a
        both_KI[out_features + rank :] = 0
        return _beside(grad, u) @ both_KI


def _beside(values: Tensor, low: Tensor) -> Tensor:
    """[values | low | zeros] of values [N, F] and low [N, R]."""
    empty = _padded(low.shape[1]) - low.shape[1]
    return torch.cat([values, low, low.new_zeros(len(low), empty)] if empty else [values, low], 1)


def _padded(rank: int) -> int:
    return -(-rank // _STEP) * _STEP


serve("updated_blockwise_linear", updated_blockwise_linear)
serve("updated_blockwise_linear_backward", updated_blockwise_linear_backward)
