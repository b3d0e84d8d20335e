"""The weight passes through the reused buffer where it is of another type: the specification, on any device."""

from torch import Tensor
from torch.nn import functional as F

from lorasmith.ops.library import implement_reference
from lorasmith.ops.precision import product_dtype, without_autocast
from lorasmith.ops.scratch import borrowed


def narrow_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """y [N, O]; see schema.py."""
    wide = product_dtype(x.dtype, x.device)
    wide_bias = None if bias is None else bias.to(wide)
    with without_autocast(x.device):
        if weight.dtype == wide:
            return F.linear(x.to(wide), weight, wide_bias).to(x.dtype)
        with borrowed(tuple(weight.shape), wide, x.device) as weight_OI:
            return F.linear(x.to(wide), weight_OI.copy_(weight), wide_bias).to(x.dtype)


implement_reference("narrow_linear", narrow_linear)
