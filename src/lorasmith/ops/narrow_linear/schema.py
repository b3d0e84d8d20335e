"""y = x W^T + bias, computed in product_dtype of x's type and rounded once to x's, without gradients.

N rows (any leading axes), I in_features, O out_features; W of any float type.
"""

import torch
from torch import Tensor

from lorasmith.errors import FormatError
from lorasmith.ops.library import define, implement_fake

define("narrow_linear", "(Tensor x, Tensor weight, Tensor? bias) -> Tensor")


def narrow_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [N, I] W [O, I]^T + bias [O]: y [N, O] in x's type. Raises FormatError where they do not fit."""
    fits = weight.dim() == 2 and x.dim() > 0 and x.shape[-1] == weight.shape[1]
    if not fits or (bias is not None and bias.shape != weight.shape[:1]):
        held = None if bias is None else list(bias.shape)
        raise FormatError(f"x {list(x.shape)} and bias {held} do not fit a weight of shape {list(weight.shape)}")
    with torch.no_grad():
        return torch.ops.lorasmith.narrow_linear.default(x, weight, bias)


implement_fake("narrow_linear", lambda x, weight, bias: x.new_empty(*x.shape[:-1], weight.shape[0]))
