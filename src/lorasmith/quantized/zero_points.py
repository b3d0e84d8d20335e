"""Blocks that are not centred on zero: value = level x scale + zero, one zero a block in f32.

A block's range is laid over the range of the levels, so that all of them are used; with int4 this is the asymmetric
rounding of QA-LoRA (arXiv 2309.14717, section 3.1). The zeros stay in f32, since an adapter whose update is constant
over a block is merged by adding to them (section 3.3).
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lorasmith.formats import NESTED_BLOCKSIZE, dynamic_map
from lorasmith.ops import double_quantize
from lorasmith.ops.blockwise.reference import PART, boundaries, resolve_scales

_TINY = 1e-38


@dataclass(frozen=True)
class OffsetBlocks:
    """Packed codes uint8, zeros f32 [blocks], scales f32 [blocks] or, nested, their codes and what those stand in."""

    packed: Tensor
    zeros: Tensor
    scales: Tensor
    nested_scales: Tensor | None = None
    nested_offset: Tensor | None = None


def quantize_with_zeros(weight: Tensor, codebook: Tensor, blocksize: int, double_quant: bool) -> OffsetBlocks:
    """Codes, scales and zeros of a weight whose rows are whole blocks, 4 bits a code.

    The codes are chosen for the scales as they are stored. A block with NaN or Inf gets a zero that is not finite.
    """
    blocks = weight.reshape(-1, blocksize)
    low, high = (limit.float() for limit in torch.aminmax(blocks, dim=1))
    span, middle = float(codebook.max() - codebook.min()), float(codebook.max() + codebook.min()) / 2
    scales = stored = (high - low) / span
    nested: tuple[Tensor, Tensor] | None = None
    if double_quant:
        codes, nested_scales, offset = double_quantize(scales)
        levels = dynamic_map(weight.device)
        stored, nested = codes, (nested_scales, offset)
        scales = resolve_scales(codes, nested_scales, offset, levels, NESTED_BLOCKSIZE)
    zeros = (low + high) / 2 - middle * scales
    part = PART // blocksize
    pieces = zip(blocks.split(part), scales.split(part), zeros.split(part), strict=True)
    packed = torch.cat([_codes(piece.float(), scale, zero, codebook) for piece, scale, zero in pieces])
    return OffsetBlocks(packed, zeros, stored, *(nested or ()))


def _codes(blocks: Tensor, scales: Tensor, zeros: Tensor, codebook: Tensor) -> Tensor:
    midpoints, order = boundaries(codebook)
    scaled = (blocks - zeros[:, None]) / scales.clamp(min=_TINY)[:, None]
    codes = order.to(torch.uint8)[torch.bucketize(scaled.reshape(-1), midpoints, out_int32=True)]
    codes = functional.pad(codes, (0, codes.numel() % 2))
    return codes[0::2] << 4 | codes[1::2]
