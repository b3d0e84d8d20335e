"""y = x W^T + bias + s x A^T B^T with W stored blockwise, without gradients.

One call of an op for a whole adapted layer: on a row or a few, as in generation, calls take longer than arithmetic.
N rows (any leading axes), I in_features, O out_features, R rank.
"""

from typing import Any

from torch import Tensor

from lorasmith.ops.blockwise.schema import STORED_ARGUMENTS
from lorasmith.ops.library import define, implement_fake

define(
    "adapted_blockwise_linear",
    f"(Tensor x, Tensor? bias, Tensor a, Tensor b, float scaling, {STORED_ARGUMENTS}) -> Tensor",
)


def _fake(x: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float, *stored: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], b.shape[0])


implement_fake("adapted_blockwise_linear", _fake)
