"""What a stored number means: one file a format, pure PyTorch."""

from lorasmith.formats.dynamic import dynamic_map, unsigned_dynamic_map
from lorasmith.formats.format import BLOCKSIZES, DEFAULT_BLOCKSIZE, NESTED_BLOCKSIZE, Format, formats
from lorasmith.formats.quantile import quantile_codebook

__all__ = [
    "BLOCKSIZES",
    "DEFAULT_BLOCKSIZE",
    "NESTED_BLOCKSIZE",
    "Format",
    "dynamic_map",
    "formats",
    "quantile_codebook",
    "unsigned_dynamic_map",
]
