"""Random weights stored in blocks, as the ops take them."""

import torch
from torch import Tensor

from lorasmith import ops
from lorasmith.formats import dynamic_map, formats
from lorasmith.ops.blockwise import reference


def stored_weight(
    shape: tuple[int, int], blocksize: int, nested: bool, generator: torch.Generator
) -> tuple[tuple[object, ...], Tensor]:
    """The arguments of an op for a random W in NF4, nested: with double quantization; and that W in f32."""
    codebook = formats["nf4"].codebook("cpu")
    packed, scales = ops.quantize_blockwise(torch.randn(*shape, generator=generator), codebook, blocksize)
    parts = (None, None, None, 256)
    if nested:
        scales, nested_scales, offset = ops.double_quantize(scales)
        parts = (nested_scales, offset, dynamic_map(), 256)
    stored = (packed, scales, codebook, blocksize, shape, *parts)
    return stored, reference.dequantize_blockwise(*stored, torch.float32)
