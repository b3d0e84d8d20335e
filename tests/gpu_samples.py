"""A call of every Triton kernel, for gpu_compiler.py: by name, each type and branch that makes other machine code."""

from collections.abc import Callable
from functools import partial

import torch

from lorasmith.formats import dynamic_map, formats
from lorasmith.ops.blockwise import triton as blockwise

NF4 = formats["nf4"].codebook("cpu")
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
NO_NESTED = (None, None, None, 256)
SAMPLES: dict[str, Callable[[], object]] = {}


def stored(shape: tuple[int, ...], nested: bool, blocksize: int = 64) -> tuple[object, ...]:
    """The parts of an NF4 tensor of zeros."""
    numel = torch.Size(shape).numel()
    blocks = -(-numel // blocksize)
    packed = torch.zeros(-(-numel // 2), dtype=torch.uint8)
    if not nested:
        return packed, torch.zeros(blocks), NF4, blocksize, shape, *NO_NESTED
    parts = (torch.zeros(-(-blocks // 256)), torch.zeros(1), dynamic_map(), 256)
    return packed, torch.zeros(blocks, dtype=torch.uint8), NF4, blocksize, shape, *parts


def eight_bit(dtype: torch.dtype) -> object:
    values = torch.zeros(256)
    codes, scales = blockwise.quantize_blockwise(values, dynamic_map(), 256)
    return blockwise.dequantize_blockwise(codes, scales, dynamic_map(), 256, (256,), *NO_NESTED, dtype)


for dtype in FLOATS:
    SAMPLES[f"quantize, {dtype}"] = partial(blockwise.quantize_blockwise, torch.zeros(4096, dtype=dtype), NF4, 64)
    SAMPLES[f"8 bits, {dtype}"] = partial(eight_bit, dtype)
    SAMPLES[f"dequantize, {dtype}"] = partial(blockwise.dequantize_blockwise, *stored((64, 64), nested=False), dtype)
    SAMPLES[f"dequantize nested, {dtype}"] = partial(
        blockwise.dequantize_blockwise, *stored((64, 64), nested=True, blocksize=4096), dtype
    )
