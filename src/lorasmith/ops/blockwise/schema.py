"""Names, arguments, checks and shapes of the blockwise ops. None has a gradient: codes are frozen.

x of n elements is read flat, row by row. packed: uint8 [ceil(n * bits / 8)], for 4 bits the even element in the high
nibble; scales: the absmax of each block, f32 [ceil(n / blocksize)]; codebook: f32 [2**bits], index = bit pattern.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from lorasmith.errors import FormatError
from lorasmith.formats import BLOCKSIZES, NESTED_BLOCKSIZE, dynamic_map
from lorasmith.ops.library import define, implement_fake

NESTED_ARGUMENTS = "Tensor? nested_scales, Tensor? nested_offset, Tensor? nested_codebook, int nested_blocksize"
STORED_ARGUMENTS = f"Tensor packed, Tensor scales, Tensor codebook, int blocksize, SymInt[] shape, {NESTED_ARGUMENTS}"

# what the parts of a stored tensor must suit
_STORED = "this shape and block size need"

define("quantize_blockwise", "(Tensor x, Tensor codebook, int blocksize) -> (Tensor, Tensor)")
define("dequantize_blockwise", f"({STORED_ARGUMENTS}, ScalarType dtype) -> Tensor")
define("dequantize_blockwise_out", f"({STORED_ARGUMENTS}, Tensor(a!) out) -> ()")


@dataclass(frozen=True)
class Nested:
    """How the scales themselves are stored: scale = codebook[code] x scales[block // blocksize] + offset.

    scales f32 [ceil(blocks / blocksize)], offset f32 of one element, codebook f32 [256].
    """

    scales: Tensor
    offset: Tensor
    codebook: Tensor
    blocksize: int = NESTED_BLOCKSIZE


def quantize_blockwise(x: Tensor, codebook: Tensor, blocksize: int) -> tuple[Tensor, Tensor]:
    """Codes and scales of a float tensor of any shape, bit-equal to bitsandbytes' on a CPU.

    Returns packed, scales. A block that holds NaN or Inf gets a scale that is not finite: the caller refuses it.
    Raises FormatError for another block size, codebook or dtype. Source: arXiv 2305.14314, section 3.
    """
    _check_codebook(codebook, x.device)
    _check_blocksize(blocksize)
    if not x.dtype.is_floating_point or x.numel() == 0:
        raise FormatError(f"x is {x.dtype} {list(x.shape)}; quantize a float tensor that is not empty")
    return torch.ops.lorasmith.quantize_blockwise.default(x.detach(), codebook, blocksize)


def double_quantize(scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Store scales f32 [blocks] in 8 bits: their mean is removed, the rest goes through the dynamic map.

    Returns codes uint8 [blocks], nested scales f32 [ceil(blocks / 256)], offset f32 scalar tensor (the mean).
    Source: arXiv 2305.14314, section 3, "double quantization".
    """
    offset = scales.mean()
    codes, nested_scales = quantize_blockwise(scales - offset, dynamic_map(scales.device), NESTED_BLOCKSIZE)
    return codes, nested_scales, offset


def dequantize_blockwise(
    packed: Tensor,
    scales: Tensor,
    codebook: Tensor,
    blocksize: int,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    *,
    nested: Nested | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """codebook[code] x scale in f32, rounded once to dtype, as a tensor of shape.

    With nested, scales are the uint8 codes [blocks] of double_quantize. With out (contiguous, of shape and dtype)
    the values are written there and out is returned. Raises FormatError where sizes or dtypes do not fit together.
    """
    check_stored(packed, scales, codebook, blocksize, shape, nested)
    stored = (packed, scales, codebook, blocksize, shape, *nested_arguments(nested))
    if out is None:
        return torch.ops.lorasmith.dequantize_blockwise.default(*stored, dtype)
    if tuple(out.shape) != tuple(shape) or out.dtype != dtype or not out.is_contiguous():
        raise FormatError(f"out is {out.dtype} {list(out.shape)}; it must be contiguous {dtype} {list(shape)}")
    torch.ops.lorasmith.dequantize_blockwise_out.default(*stored, out)
    return out


def nested_arguments(nested: Nested | None) -> tuple[Tensor | None, Tensor | None, Tensor | None, int]:
    """nested as the flat arguments that an op's signature takes."""
    if nested is None:
        return None, None, None, NESTED_BLOCKSIZE
    return nested.scales, nested.offset, nested.codebook, nested.blocksize


def bits_of(codebook: Tensor) -> int:
    """4 or 8, from the number of levels."""
    return 4 if codebook.shape[0] == 16 else 8


def check_stored(
    packed: Tensor, scales: Tensor, codebook: Tensor, blocksize: int, shape: tuple[int, ...], nested: Nested | None
) -> None:
    """FormatError unless the parts of a stored tensor of shape fit together."""
    _check_codebook(codebook, packed.device)
    _check_blocksize(blocksize)
    numel = prod(shape)
    blocks = -(-numel // blocksize)
    check_part("packed", packed, torch.uint8, -(-numel * bits_of(codebook) // 8), packed.device)
    check_part("scales", scales, torch.float32 if nested is None else torch.uint8, blocks, packed.device)
    if nested is not None:
        _check_blocksize(nested.blocksize)
        nested_blocks = -(-blocks // nested.blocksize)
        check_part("nested.scales", nested.scales, torch.float32, nested_blocks, packed.device)
        check_part("nested.offset", nested.offset, torch.float32, 1, packed.device)
        check_part("nested.codebook", nested.codebook, torch.float32, 256, packed.device)


def into_new(fill: Callable[..., None]) -> Callable[..., Tensor]:
    """The op that returns its values, from the function that fills out with them."""

    def dequantize_blockwise(packed: Tensor, *stored_and_dtype: Any) -> Tensor:
        """Values of dtype, of shape."""
        *stored, dtype = stored_and_dtype
        out = packed.new_empty(stored[3], dtype=dtype)
        fill(packed, *stored, out)
        return out

    return dequantize_blockwise


def check_part(
    name: str, part: Tensor, dtype: torch.dtype, numel: int, device: torch.device, whole: str = _STORED
) -> None:
    """FormatError unless part is contiguous, of numel elements of dtype on device, as whole needs it."""
    if part.dtype != dtype or part.numel() != numel or not part.is_contiguous() or part.device != device:
        raise FormatError(
            f"{name} is {part.dtype} with {part.numel()} elements on {part.device}; "
            f"{whole} contiguous {dtype} with {numel} on {device}"
        )


def _check_blocksize(blocksize: int) -> None:
    if blocksize not in BLOCKSIZES:
        raise FormatError(f"blocksize={blocksize} is not one of {BLOCKSIZES}; use 64, the QLoRA default")


def _check_codebook(codebook: Tensor, device: torch.device) -> None:
    if codebook.dtype != torch.float32 or tuple(codebook.shape) not in ((16,), (256,)) or codebook.device != device:
        raise FormatError(
            f"codebook is {codebook.dtype} {list(codebook.shape)} on {codebook.device}; "
            f"it must be float32 with 16 or 256 levels on {device}, as Format.codebook(device) gives"
        )


def _fake_quantize(x: Tensor, codebook: Tensor, blocksize: int) -> tuple[Tensor, Tensor]:
    packed = x.new_empty(-(-x.numel() * bits_of(codebook) // 8), dtype=torch.uint8)
    return packed, x.new_empty(-(-x.numel() // blocksize), dtype=torch.float32)


implement_fake("quantize_blockwise", _fake_quantize)
implement_fake("dequantize_blockwise", into_new(lambda *stored_and_out: None))
implement_fake("dequantize_blockwise_out", lambda *stored_and_out: None)
