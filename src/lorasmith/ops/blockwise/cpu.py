"""The blockwise ops on a CPU through csrc/: codes, scales and values bit-equal to reference.py.

What the extension lacks (values of 8-bit codes, values in float16) goes to the reference.
"""

from math import prod

import torch
from torch import Tensor

from lorasmith.ops.blockwise import reference
from lorasmith.ops.blockwise.schema import bits_of, into_new
from lorasmith.ops.library import implement_native
from lorasmith.ops.native import FLOATS, extension, kernels, level, plain

INPUT_DTYPES = (*FLOATS, torch.float16)


def quantize_blockwise(x: Tensor, codebook: Tensor, blocksize: int) -> tuple[Tensor, Tensor]:
    """packed uint8, scales f32; see schema.py."""
    flat = plain(x)
    bits = bits_of(codebook)
    midpoints, order = reference.boundaries(codebook)
    packed = torch.empty(-(-flat.numel() * bits // 8), dtype=torch.uint8)
    scales = torch.empty(-(-flat.numel() // blocksize), dtype=torch.float32)
    rule = (midpoints, order.to(torch.uint8), packed, scales, blocksize, torch.get_num_threads())
    if bits == 8:
        kernels().quantize_8bit(flat.float(), *rule)
    else:
        kernels().quantize_4bit(flat if flat.dtype in INPUT_DTYPES else flat.float(), *rule, level())
    return packed, scales


def dequantize_blockwise_out(
    packed: Tensor,
    scales: Tensor,
    codebook: Tensor,
    blocksize: int,
    shape: tuple[int, ...],
    nested_scales: Tensor | None,
    nested_offset: Tensor | None,
    nested_codebook: Tensor | None,
    nested_blocksize: int,
    out: Tensor,
) -> None:
    """Fill out with the values; see schema.py."""
    nested = (nested_scales, nested_offset, nested_codebook, nested_blocksize)
    if bits_of(codebook) != 4 or out.dtype not in FLOATS or prod(shape) == 0:
        reference.dequantize_blockwise_out(packed, scales, codebook, blocksize, shape, *nested, out)
        return
    stored = (packed, scales, codebook, blocksize, *nested)
    kernels().dequantize_4bit(*stored, out, torch.get_num_threads(), level())


dequantize_blockwise = into_new(dequantize_blockwise_out)


if extension() is not None:
    implement_native("quantize_blockwise", "cpu", quantize_blockwise)
    implement_native("dequantize_blockwise", "cpu", dequantize_blockwise)
    implement_native("dequantize_blockwise_out", "cpu", dequantize_blockwise_out)
