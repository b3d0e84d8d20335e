"""A call of every Triton kernel, for gpu_compiler.py: by name, each type and branch that makes other machine code."""

from collections.abc import Callable
from functools import partial

import torch

from lorasmith.formats import dynamic_map, formats
from lorasmith.ops.adam8bit import triton as adam8bit
from lorasmith.ops.adapted_blockwise import triton as adapted_blockwise
from lorasmith.ops.blockwise import triton as blockwise
from lorasmith.ops.blockwise_linear import matrix, vector
from lorasmith.ops.blockwise_linear.packed import Update, packed_weight
from lorasmith.ops.gated_activation import triton as gated_activation
from lorasmith.ops.rms_norm import triton as rms_norm
from lorasmith.ops.rotary import triton as rotary
from lorasmith.ops.rowwise import triton as rowwise
from lorasmith.ops.segmented_low_rank import triton as segmented
from lorasmith.ops.segmented_low_rank.schema import Segments
from lorasmith.ops.token_loss import triton as token_loss

NF4 = formats["nf4"].codebook("cpu")
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
# where compiling takes seconds: f16 takes bf16's way
TWO_FLOATS = FLOATS[:2]
NO_NESTED = (None, None, None, 256)
SAMPLES: dict[str, Callable[[], object]] = {}


def adam_step(dtype: torch.dtype) -> None:
    weight = torch.zeros(300, dtype=dtype)
    masters = {torch.bfloat16: torch.zeros(300, dtype=torch.int16), torch.float16: torch.zeros(300)}
    master = masters.get(dtype)
    moment = (torch.zeros(300, dtype=torch.uint8), torch.zeros(2), torch.zeros(256), torch.zeros(255))
    adam8bit.adam8bit_(weight, master, weight.clone(), *moment, *moment, 0.9, 0.999, 1e-8, 1, 1e-3, 0.0)


for dtype in FLOATS:
    SAMPLES[f"adam8bit, {dtype}"] = partial(adam_step, dtype)


def stored(shape: tuple[int, ...], nested: bool, blocksize: int = 64) -> tuple[object, ...]:
    """The parts of an NF4 tensor of zeros."""
    numel = torch.Size(shape).numel()
    blocks = -(-numel // blocksize)
    packed = torch.zeros(-(-numel // 2), dtype=torch.uint8)
    if not nested:
        return packed, torch.zeros(blocks), NF4, blocksize, shape, *NO_NESTED
    parts = (torch.zeros(-(-blocks // 256)), torch.zeros(1), dynamic_map(), 256)
    return packed, torch.zeros(blocks, dtype=torch.uint8), NF4, blocksize, shape, *parts


def into_columns() -> None:
    parts = stored((64, 64), nested=True)
    blockwise.dequantize_into_columns(parts, torch.zeros(64, 80).bfloat16()[:, :64])


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


SAMPLES["dequantize into columns"] = into_columns


def normed(x: torch.Tensor, plus_one: bool, rounds_first: bool, trains: bool) -> object:
    weight = x.new_zeros(x.shape[-1])
    _, rms = rms_norm.rms_norm(x, weight, 1e-6, plus_one, rounds_first)
    return rms_norm.rms_norm_backward(x, x, weight, rms, plus_one, rounds_first, trains)


for dtype in FLOATS:
    SAMPLES[f"norm, {dtype}"] = partial(normed, torch.zeros(64, 4096, dtype=dtype), False, True, trains=False)
SAMPLES["norm of narrow rows, trained"] = partial(normed, torch.zeros(4096, 96).bfloat16(), True, False, trains=True)
SAMPLES["norm of wide rows, trained"] = partial(normed, torch.zeros(64, 16384).bfloat16(), False, True, trains=True)


def gated(both: torch.Tensor, activation: str) -> object:
    halves, grads = both.chunk(2, -1), torch.empty_like(both).chunk(2, -1)
    grad = gated_activation.gated_activation(*halves, activation)
    return gated_activation.gated_activation_backward_out(grad, *halves, activation, *grads)


for dtype in FLOATS:
    SAMPLES[f"SwiGLU, {dtype}"] = partial(gated, torch.zeros(2, 2, 4096, dtype=dtype), "silu")
SAMPLES["GeGLU, not packed"] = partial(gated, torch.zeros(8192).bfloat16(), "gelu_tanh")


def turned(columns: int, dtype: torch.dtype, table: torch.dtype, *options: bool) -> object:
    q, k = (torch.zeros(2, 16, heads, 128, dtype=dtype).transpose(1, 2) for heads in (32, 8))
    tables = torch.zeros(2, 16, columns, dtype=table), torch.zeros(2, 16, columns, dtype=table)
    return rotary.rotary(q, k, *tables, *options)


# interleaved, an entry a pair, wide, backward
for dtype in FLOATS:
    SAMPLES[f"rotary, {dtype}"] = partial(turned, 128, dtype, dtype, False, False, False, False)
SAMPLES["rotary, backward"] = partial(turned, 128, torch.bfloat16, torch.bfloat16, False, False, False, True)
SAMPLES["rotary of a part, wide"] = partial(turned, 96, torch.bfloat16, torch.float32, False, False, True, False)
SAMPLES["rotary, interleaved"] = partial(turned, 128, torch.bfloat16, torch.float32, True, False, True, True)
SAMPLES["rotary, interleaved by pairs"] = partial(turned, 32, torch.bfloat16, torch.bfloat16, True, True, False, False)


def loss(dtype: torch.dtype, columns: int, *asked: object) -> object:
    """asked: softcap, scale, label smoothing, z-loss, gradient."""
    logits, labels = torch.zeros(2, columns, dtype=dtype), torch.zeros(2, dtype=torch.long)
    return token_loss.token_loss_(logits, labels, torch.zeros(2), *asked)


for dtype in FLOATS:
    SAMPLES[f"loss, {dtype}"] = partial(loss, dtype, 32000, None, 1.0, 0.0, 0.0, True)
SAMPLES["loss, capped and smoothed"] = partial(loss, torch.bfloat16, 1000, 30.0, 0.5, 0.1, 1e-4, True)
SAMPLES["loss of long rows, without gradient"] = partial(loss, torch.bfloat16, 262144, None, 1.0, 0.0, 0.0, False)


def by_segments(rows: int, dtype: torch.dtype, *ranks: int) -> None:
    """Rows of 4096 features, two adapters."""
    segments = Segments.of(torch.arange(rows) % 2, ranks, (1.0, 1.0))
    x, factors = torch.zeros(rows, 4096, dtype=dtype), torch.zeros(sum(ranks), 4096, dtype=dtype)
    h = segmented.project(x, factors, *segments.parts, segments.rank)
    segmented.add_(x, h, factors, *segments.parts)
    segmented.outer(h, x, *segments.parts, segments.total_rank)


for dtype in TWO_FLOATS:
    SAMPLES[f"segments of many rows, {dtype}"] = partial(by_segments, 1000, dtype, 8, 64)
SAMPLES["segments of few rows"] = partial(by_segments, 32, torch.bfloat16, 16, 8)


def adapted(rows: int, dtype: torch.dtype) -> object:
    x, a, b = torch.zeros(rows, 512, dtype=dtype), torch.zeros(8, 512), torch.zeros(64, 8)
    return adapted_blockwise.adapted_blockwise_linear(x, None, a, b, 1.0, *stored((64, 512), nested=True))


def product(rows: int, dtype: torch.dtype, nested: bool, rank: int = 0, h: torch.dtype = torch.float32) -> object:
    """With 1,024 columns and few rows the sums are split."""
    weight = packed_weight(stored((128, 1024), nested))
    update = Update(torch.zeros(rows, rank, dtype=h), torch.zeros(128, rank, dtype=dtype)) if rank else None
    multiply = vector.multiply if rows == 1 else matrix.forward
    return multiply(torch.zeros(rows, 1024, dtype=dtype), torch.zeros(128, dtype=dtype), weight, update)


def product_backward(rows: int, dtype: torch.dtype, rank: int = 0) -> object:
    u, a = (torch.zeros(rows, rank, dtype=dtype), torch.zeros(rank, 1024, dtype=dtype)) if rank else (None, None)
    return matrix.backward(torch.zeros(rows, 128, dtype=dtype), packed_weight(stored((128, 1024), nested=True)), u, a)


SAMPLES["a row, adapted"] = partial(adapted, 1, torch.bfloat16)
SAMPLES["a row"] = partial(product, 1, torch.float16, nested=False)
SAMPLES["32 rows, adapted"] = partial(product, 32, torch.float32, nested=False, rank=40)
SAMPLES["1024 rows"] = partial(product, 1024, torch.bfloat16, nested=True, rank=8, h=torch.bfloat16)
for dtype in TWO_FLOATS:
    SAMPLES[f"few rows, {dtype}"] = partial(product, 5, dtype, nested=True)
    SAMPLES[f"gradient of 64 rows, {dtype}"] = partial(product_backward, 64, dtype)
SAMPLES["gradient of 1024 rows"] = partial(product_backward, 1024, torch.bfloat16, rank=8)


def int8(rows: int, dtype: torch.dtype, threshold: float) -> None:
    """A layer of 512 x 4096 in int8: weights rounded, read back, and multiplied."""
    codes, absmax = rowwise.quantize_rowwise(torch.zeros(512, 4096, dtype=dtype))
    rowwise.dequantize_rowwise(codes, absmax, dtype)
    rowwise.rowwise_linear(torch.zeros(rows, 4096, dtype=dtype), torch.zeros(512), codes, absmax, threshold)


for dtype in TWO_FLOATS:
    SAMPLES[f"int8, {dtype}"] = partial(int8, 1, dtype, 6.0)
SAMPLES["int8 of many rows, nothing left out"] = partial(int8, 31, torch.bfloat16, 0.0)
