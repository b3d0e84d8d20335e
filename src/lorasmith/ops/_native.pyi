"""The extension that csrc/module.cpp builds. Arrays are contiguous, on the CPU, read flat, and never converted."""

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
    """Fill y float32 [rows, out_features] with x [rows, in_features], of either type, times the stored W^T."""

def adapted_4bit(
    packed: Tensor,
    scales: Tensor,
    codebook: Tensor,
    blocksize: int,
    nested_scales: Tensor | None,
    nested_offset: Tensor | None,
    nested_codebook: Tensor | None,
    nested_blocksize: int,
    x: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    scale: float,
    out: Tensor,
    in_features: int,
    threads: int,
    level: str,
) -> None:
    """Fill out as multiply_4bit fills y, in float32 or bfloat16, with bias and scale times x a^T b^T added."""

def low_rank_project(x: Tensor, a: Tensor, scale: float, h: Tensor, rank: int, threads: int, level: str) -> None:
    """Fill h float32 [N, rank] with scale times x [N, F], float32 or bfloat16, times a float32 [rank, F] transposed."""

def low_rank_add(
    y: Tensor, h: Tensor, b: Tensor, out: Tensor, rank: int, transposed: bool, threads: int, level: str
) -> None:
    """Fill out [N, F] with y [N, F] plus h float32 [N, rank] times b float32 [rank, F], or [F, rank] if transposed."""

def low_rank_outer(h: Tensor, x: Tensor, out: Tensor, rank: int, threads: int, level: str) -> None:
    """Fill out float32 [rank, F] with h float32 [N, rank] transposed times x [N, F] in float32 or bfloat16."""

def rms_norm(
    x: Tensor,
    weight: Tensor,
    rms: Tensor,
    out: Tensor,
    eps: float,
    plus_one: bool,
    rounds_first: bool,
    threads: int,
    level: str,
) -> None:
    """Fill out and rms float32 [rows] from x [rows, columns] and weight [columns], all float32 or all bfloat16."""

def rms_norm_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    rms: Tensor,
    out: Tensor,
    grad_weight: Tensor,
    plus_one: bool,
    rounds_first: bool,
    threads: int,
    level: str,
) -> None:
    """Fill out with the gradient of x; add that of weight to grad_weight float32 [parts, columns], by parts of rows."""

def token_loss(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor | None,
    losses: Tensor,
    scale: float,
    softcap: float,
    smoothing: float,
    z_loss: float,
    gradient: bool,
    threads: int,
    level: str,
) -> None:
    """Fill losses float32 [rows] and, on demand, logits [rows, columns], float32 or bfloat16, with their gradient."""

def gated_activation(gate: Tensor, up: Tensor, out: Tensor, function: str, threads: int, level: str) -> None:
    """Fill out [rows, columns]; rows of gate and up may lie apart."""

def gated_activation_backward(
    grad: Tensor,
    gate: Tensor,
    up: Tensor,
    grad_gate: Tensor,
    grad_up: Tensor,
    function: str,
    threads: int,
    level: str,
) -> None:
    """Fill grad_gate and grad_up, whose rows may lie apart."""

def multiply_int8(a: Tensor, b: Tensor, y: Tensor, in_features: int, threads: int, level: str) -> None:
    """Fill y int32 [rows, columns] with a int8 [rows, in_features] times b int8 [columns, in_features] transposed."""

def multiply_narrow(x: Tensor, weight: Tensor, y: Tensor, in_features: int, threads: int, level: str) -> None:
    """Fill y float32 [rows, out] with x float32 [rows, in_features] times weight bfloat16 [out, in_features]^T."""
