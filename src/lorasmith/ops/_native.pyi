"""The extension that csrc/module.cpp builds. Arrays are contiguous, of one axis, on the CPU, and never converted."""

from torch import Tensor

def levels() -> list[str]:
    """Instruction sets that can be used here, best last."""

def threading() -> str:
    """What the kernels share the cores by: OpenMP or threads."""

def quantize_4bit(
    x: Tensor,
    midpoints: Tensor,
    order: Tensor,
    packed: Tensor,
    scales: Tensor,
    blocksize: int,
    threads: int,
    level: str,
) -> None:
    """Fill packed and scales from x in float32, bfloat16 or float16."""

def quantize_8bit(
    x: Tensor, midpoints: Tensor, order: Tensor, codes: Tensor, scales: Tensor, blocksize: int, threads: int
) -> None:
    """Fill codes and scales from x in float32."""

most_skinny_rows: int
"""How many rows multiply_4bit takes."""

def dequantize_4bit(
    packed: Tensor,
    scales: Tensor,
    codebook: Tensor,
    blocksize: int,
    nested_scales: Tensor | None,
    nested_offset: Tensor | None,
    nested_codebook: Tensor | None,
    nested_blocksize: int,
    out: Tensor,
    threads: int,
    level: str,
) -> None:
    """Fill out, float32 or bfloat16, resolving nested scales on the way."""

def multiply_4bit(
    packed: Tensor,
    scales: Tensor,
    codebook: Tensor,
    blocksize: int,
    nested_scales: Tensor | None,
    nested_offset: Tensor | None,
    nested_codebook: Tensor | None,
    nested_blocksize: int,
    x: Tensor,
    y: Tensor,
    in_features: int,
    threads: int,
    level: str,
) -> None:
    """Fill y float32 [rows, out_features] with x float32 [rows, in_features] times the stored weight transposed."""

def multiply_int8(a: Tensor, b: Tensor, y: Tensor, in_features: int, threads: int, level: str) -> None:
    """Fill y int32 [rows, columns] with a int8 [rows, in_features] times b int8 [columns, in_features] transposed."""
