"""Blockwise quantization in plain PyTorch: the specification, on every device.

4 bits: scaled = x * (1 / max(absmax, 1e-38)), code = nearest level. The partial last block divides by its clamped
absmax instead and stores it clamped, and an odd number of elements is padded with a zero: bitsandbytes 0.50.2 does
both, and the bytes must agree with its CPU backend.
8 bits: scaled = x * (1 / absmax) is first rounded to one of 65,536 points of [-1, 1], then to the nearest level; this
is that library's look-up table. Codes of a block of zeros are 0.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from lorasmith.ops.blockwise.schema import bits_of, into_new
from lorasmith.ops.library import implement_reference

SMALLEST_ABSMAX = 1e-38
GRID_STEPS = 65535
# Elements at a time, whole blocks of any size: the intermediate values of a part take some 20 bytes an element.
PART = 1 << 22


def quantize_blockwise(x: Tensor, codebook: Tensor, blocksize: int) -> tuple[Tensor, Tensor]:
    """packed uint8, scales f32; see schema.py."""
    quantize = _quantize_4bit if bits_of(codebook) == 4 else _quantize_8bit
    parts = [quantize(part.float(), codebook, blocksize) for part in x.reshape(-1).split(PART)]
    packed, scales = zip(*parts, strict=True)
    return torch.cat(packed), torch.cat(scales)


def boundaries(codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Midpoints between neighbouring levels f32 [levels - 1], and the code of each level in ascending order."""
    order = codebook.argsort(stable=True)
    ascending = codebook[order]
    return (ascending[:-1] + ascending[1:]) / 2, order


def _quantize_4bit(flat: Tensor, codebook: Tensor, blocksize: int) -> tuple[Tensor, Tensor]:
    whole = flat.numel() - flat.numel() % blocksize
    blocks, rest = flat[:whole].view(-1, blocksize), flat[whole:]
    scales = blocks.abs().amax(dim=1) if whole else flat.new_empty(0)
    scaled = (blocks * (1.0 / scales.clamp(min=SMALLEST_ABSMAX))[:, None]).reshape(-1)
    if rest.numel():
        rest_scale = rest.abs().amax().clamp(min=SMALLEST_ABSMAX)
        scales = torch.cat([scales, rest_scale[None]])
        scaled = torch.cat([scaled, rest / rest_scale])
    midpoints, order = boundaries(codebook)
    even_count = F.pad(scaled.clamp(-1, 1), (0, flat.numel() % 2))
    codes = order.to(torch.uint8)[torch.bucketize(even_count, midpoints, out_int32=True)]
    return codes[0::2] << 4 | codes[1::2], scales


def _quantize_8bit(flat: Tensor, codebook: Tensor, blocksize: int) -> tuple[Tensor, Tensor]:
    blocks = F.pad(flat, (0, -flat.numel() % blocksize)).view(-1, blocksize)
    scales = blocks.abs().amax(dim=1)
    # 0 * (1 / 0) is NaN, and the grid's first point stands for it.
    scaled = (blocks * (1.0 / scales)[:, None]).clamp(-1, 1).nan_to_num(nan=-1.0)
    point = ((scaled + 1.0) * (GRID_STEPS / 2) + 0.5).floor()
    midpoints, order = boundaries(codebook)
    codes = order.to(torch.uint8)[torch.bucketize(point * (2.0 / GRID_STEPS) - 1.0, midpoints, out_int32=True)]
    return codes.view(-1)[: flat.numel()], scales


def resolve_scales(
    scales: Tensor,
    nested_scales: Tensor | None,
    nested_offset: Tensor | None,
    nested_codebook: Tensor | None,
    nested_blocksize: int,
) -> Tensor:
    """The scale of each block, f32 [blocks], out of its codes where the scales are nested."""
    if nested_scales is None or nested_offset is None or nested_codebook is None:
        return scales
    return dequantize_flat(scales, nested_scales, nested_codebook, nested_blocksize) + nested_offset


def dequantize_flat(codes: Tensor, scales: Tensor, codebook: Tensor, blocksize: int) -> Tensor:
    """codebook[code] * scale of its block, f32 [n], of uint8 codes [n] that are not packed."""
    values = F.pad(codebook[codes.int()], (0, -codes.numel() % blocksize))
    return (values.view(-1, blocksize) * scales[:, None]).view(-1)[: codes.numel()]


def unpack(packed: Tensor) -> Tensor:
    """The 4-bit codes uint8 [2n] of n bytes."""
    return torch.stack([packed >> 4, packed & 15], dim=1).view(-1)


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
    scales = resolve_scales(scales.view(-1), nested_scales, nested_offset, nested_codebook, nested_blocksize)
    bits = bits_of(codebook)
    packed_parts = packed.view(-1).split(PART * bits // 8)
    parts = zip(out.view(-1).split(PART), packed_parts, scales.split(PART // blocksize), strict=True)
    for out_part, packed_part, scales_part in parts:
        codes = packed_part if bits == 8 else unpack(packed_part)[: out_part.numel()]
        out_part.copy_(dequantize_flat(codes, scales_part, codebook, blocksize))


dequantize_blockwise = into_new(dequantize_blockwise_out)


implement_reference("quantize_blockwise", quantize_blockwise)
implement_reference("dequantize_blockwise", dequantize_blockwise)
implement_reference("dequantize_blockwise_out", dequantize_blockwise_out)
