"""The quantized linear on a GPU: few rows straight from the codes, more in whichever way is faster there.

Two ways take many rows: "fused" decodes tiles of W inside the product (matrix.py), "buffer" is reference.py. The first
saves writing and reading W dense, the second decodes each code once and multiplies in the vendor's library. From
transfers and arithmetic alone the fused way should win up to some hundreds of rows; that is the rule where nothing was
measured, and choice.py measures on the device itself. Before compute capability 8.0 Triton's compiler multiplies
without tensor cores, for which these tiles are too large; there only the buffer takes many rows.
"""

from typing import Any

from torch import Tensor

from lorasmith.ops import choice
from lorasmith.ops.blockwise_linear import matrix, reference, vector
from lorasmith.ops.blockwise_linear.packed import PackedWeight, Update, packed_weight
from lorasmith.ops.gpu import FLOATS, serve, tensor_cores

FEW_ROWS = 32
"""Up to so many the dense W is far more traffic than the codes, and there is nothing to measure."""

FUSED_ROWS = 256
"""Up to so many the fused way is taken where nothing was measured."""

MOST_FUSED_ROWS = 1024
"""Beyond so many decoding W anew for every tile of rows is reckoned to take longer than writing and reading it once."""

MEASURED_ROWS = 4096
"""Beyond so many the dense W is a few percent of the product, and a copy of x larger than it: no way but the buffer."""


def few_rows(x: Tensor, bias: Tensor | None, weight: PackedWeight, update: Update | None) -> Tensor:
    """x W^T + bias + h B^T of a few rows x [N, I], straight from the codes: y [N, O] in x's type."""
    product = vector.multiply if x.shape[0] == 1 and weight.has_words else matrix.forward
    return product(x, bias, weight, update)


def blockwise_linear(x: Tensor, bias: Tensor | None, *stored: Any) -> Tensor:
    """y [B, O]; see schema.py."""
    weight = packed_weight(stored)
    if weight is None or x.dtype not in FLOATS or x.numel() == 0:
        return reference.blockwise_linear(x, bias, *stored)
    x_NI = x.reshape(-1, weight.in_features).contiguous()
    if x_NI.shape[0] <= FEW_ROWS:
        y_NO = few_rows(x_NI, bias, weight, None)
    else:
        ways = {
            "fused": lambda: matrix.forward(x_NI, bias, weight, None),
            "buffer": lambda: reference.blockwise_linear(x_NI, bias, *stored),
        }
        y_NO = chosen("forward", x_NI, weight, ways)
    return y_NO.view(*x.shape[:-1], weight.out_features)


def blockwise_linear_backward(grad: Tensor, *stored: Any) -> Tensor:
    """The gradient of x [B, I], from that of y [B, O]."""
    weight = packed_weight(stored)
    if weight is None or grad.dtype not in FLOATS or grad.numel() == 0:
        return reference.blockwise_linear_backward(grad, *stored)
    grad_NO = grad.reshape(-1, weight.out_features).contiguous()
    ways = {
        "fused": lambda: matrix.backward(grad_NO, weight),
        "buffer": lambda: reference.blockwise_linear_backward(grad_NO, *stored),
    }
    return chosen("backward", grad_NO, weight, ways).view(*grad.shape[:-1], weight.in_features)


def chosen(direction: str, values: Tensor, weight: PackedWeight, ways: dict[str, choice.Way]) -> Tensor:
    """What the fastest of ways gives for values [N, F]; direction tells kinds of products with W apart."""
    rows = values.shape[0]
    sizes = f"{choice.size_class(rows)}x{weight.out_features}x{weight.in_features}"
    storage = f"blocks of {weight.blocksize}{' nested' if weight.nested_blocksize else ''}"
    kind = f"blockwise linear {direction} {sizes} {values.dtype} {storage}" if rows <= MEASURED_ROWS else None
    if rows > MOST_FUSED_ROWS or not tensor_cores(values.device):
        ways = {name: way for name, way in ways.items() if name != "fused"}
    rule = "fused" if rows <= FUSED_ROWS and "fused" in ways else "buffer"
    return choice.take(ways, rule, kind, values.device)


serve("blockwise_linear", blockwise_linear)
serve("blockwise_linear_backward", blockwise_linear_backward)
