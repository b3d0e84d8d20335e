"""What the Triton kernels share: one exact rounding."""

import triton
import triton.language as tl

from lorasmith.ops.gpu import interpreted

_INTERPRETED = tl.constexpr(interpreted())


@triton.jit
def rounded(values, dtype: tl.constexpr):
    """f32 values in dtype, to the nearest and ties to even; the interpreter's own cast to bfloat16 cuts bits off."""
    if not _INTERPRETED or dtype != tl.bfloat16:
        return values.to(dtype)
    else:
        bits = values.to(tl.uint32, bitcast=True)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        # a carry would make a NaN of large payload into a number
        nearest = tl.where(values != values, 0x7FC0, nearest)
        return nearest.to(tl.uint16).to(tl.bfloat16, bitcast=True)
