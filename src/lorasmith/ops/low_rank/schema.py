"""The three thin products that an update s x A^T B^T and its gradients are made of.

Beside the frozen weight's product they are hardly any arithmetic, but a general matrix product runs at a quarter of its
rate or less on so few columns. They are called inside autograd steps and have no gradient
themselves. N rows, F features, R rank; x and y of any float type, factors and sums at least f32.
"""

import torch
from torch import Tensor

from lorasmith.ops.library import define, implement_fake

define("low_rank_project", "(Tensor x, Tensor a, float scale) -> Tensor")
define("low_rank_add", "(Tensor y, Tensor h, Tensor b, Tensor(a!) out) -> ()")
define("low_rank_outer", "(Tensor h, Tensor x) -> Tensor")


def project(x: Tensor, a: Tensor, scale: float) -> Tensor:
    """scale x A^T of x [N, F] and A [R, F]: h [N, R], in A's type."""
    return torch.ops.lorasmith.low_rank_project.default(x, a, scale)


def add_update(y: Tensor, h: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """y + h B of y [N, F], h [N, R] and B [R, F], rounded once to dtype; y is written over where that is its type."""
    out = y if y.dtype == dtype else torch.empty_like(y, dtype=dtype)
    torch.ops.lorasmith.low_rank_add.default(y, h, b, out)
    return out


def outer(h: Tensor, x: Tensor) -> Tensor:
    """h^T x of h [N, R] and x [N, F]: [R, F], in h's type."""
    return torch.ops.lorasmith.low_rank_outer.default(h, x)


implement_fake("low_rank_project", lambda x, a, scale: a.new_empty(x.shape[0], a.shape[0]))
implement_fake("low_rank_add", lambda y, h, b, out: None)
implement_fake("low_rank_outer", lambda h, x: h.new_empty(h.shape[1], x.shape[1]))
