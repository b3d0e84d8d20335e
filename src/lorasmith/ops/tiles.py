"""What the Triton kernels share: what Triton lacks, or its interpreter does otherwise than its compiler."""

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


@triton.jit
def hyperbolic_tangent(u):
    """tanh of f32, to some units in the last place: near 0 by a polynomial, where 1 - 2 / (e^2u + 1) loses digits."""
    square = u * u
    p = -5.70498872745e-3 * square + 2.06390887954e-2
    p = p * square - 5.37397155531e-2
    p = p * square + 1.33314422036e-1
    p = p * square - 3.33332819422e-1
    return tl.where(square < 0.625 * 0.625, p * square * u + u, 1.0 - 2.0 / (tl.exp(2.0 * u) + 1.0))


@triton.jit
def add_product(total, a, b):
    """total + a b in f32; the interpreter would multiply the bits of bfloat16 as integers."""
    if _INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), total)
    else:
        return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def loop_end(value):
    """A number that a loop ends at: the interpreter's own are arrays of one, which NumPy 2.4 takes for no number."""
    if not _INTERPRETED:
        return value
    else:
        return value.handle.data.item()
