"""Rotary position embedding in plain PyTorch: the specification, on every device. Rounds where autograd would."""

import torch
from torch import Tensor

from lorasmith.ops.library import implement_reference


def rotary(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, per_pair: bool, wide: bool, backward: bool
) -> tuple[Tensor, Tensor]:
    """q [B, H, T, D] and k turned, or with backward what gradients of the turned ones are to them; see schema.py."""
    # one for all heads
    cos, sin = cos[:, None], sin[:, None]
    of_cos = (cos, cos) if per_pair else _pair(cos, interleaved)
    of_sin = (sin, sin) if per_pair else _pair(sin, interleaved)
    options = (interleaved, wide, backward)
    return _turned(q, of_cos, of_sin, *options), _turned(k, of_cos, of_sin, *options)


def _turned(
    x: Tensor,
    cos: tuple[Tensor, Tensor],
    sin: tuple[Tensor, Tensor],
    interleaved: bool,
    wide: bool,
    backward: bool,
) -> Tensor:
    out = torch.empty_like(x)
    width = 2 * cos[0].shape[-1]
    out[..., width:] = x[..., width:]
    dtype = torch.promote_types(x.dtype, torch.float32) if wide else x.dtype
    first, second = _pair(x[..., :width].to(dtype), interleaved)
    out_first, out_second = _pair(out[..., :width], interleaved)
    if backward:
        # the transpose of the step from (first, second)
        out_first.copy_(first * cos[0] + second * sin[1])
        out_second.copy_(second * cos[1] - first * sin[0])
    else:
        out_first.copy_(first * cos[0] - second * sin[0])
        out_second.copy_(second * cos[1] + first * sin[1])
    return out


def _pair(x: Tensor, interleaved: bool) -> tuple[Tensor, Tensor]:
    """Views of the first and second members of all pairs."""
    if interleaved:
        return x[..., 0::2], x[..., 1::2]
    first, second = x.chunk(2, -1)
    return first, second


implement_reference("rotary", rotary)
