"""LLM.int8() on a GPU: codes and scales bit-equal to reference.py, exact integer products, scales in one pass behind.

A layer's product never waits for the GPU: the list of large input features stays there, and the last kernel goes
through it. Integer products go to cuBLASLt where it takes their shapes, else to a kernel here, made for few rows.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lorasmith.ops.gpu import EXACT, FLOATS, current, serve, unbroken
from lorasmith.ops.precision import without_autocast
from lorasmith.ops.rowwise import reference
from lorasmith.ops.scratch import borrowed
from lorasmith.ops.tiles import add_product, loop_end, rounded

CUBLAS_ROWS = 32
"""Rows from which cuBLASLt multiplies int8 surely, columns and features being multiples of 8; torch wants 17."""
TILE = 4096
"""Elements of a row that a program rounds at once."""


@triton.jit
def _values(x, place, known, HALF: tl.constexpr):
    values = tl.load(x + place, mask=known, other=0.0).to(tl.float32)
    if HALF:
        return values.to(tl.float16).to(tl.float32)
    else:
        return values


@triton.jit
def _inverse(absmax):
    # 127 / absmax as torch has it, rounded twice: it decides which way half of a row's largest value goes
    return tl.math.div_rn(1.0, absmax) * 127.0


@triton.jit
def _codes_of(values, factor):
    scaled = values * factor
    # in a row of zeros or of something that is no number codes are 0
    scaled = tl.where(tl.abs(scaled) < float("inf"), scaled, 0.0)
    # beyond 2**23 f32 has no fractions, so that the sum is rounded to an integer, ties to even
    return ((scaled + 12582912.0) - 12582912.0).to(tl.int32).to(tl.int8)


@triton.jit
def _round_rows(x, codes, absmax, stride, WIDTH: tl.constexpr, HALF: tl.constexpr, TILE: tl.constexpr):
    """Codes and absmax of a row, read as float16 where HALF."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, TILE)
    most = tl.zeros([TILE], tl.float32)
    broken = tl.zeros([TILE], tl.int32)
    for start in range(0, WIDTH, TILE):
        values = _values(x + row * stride, start + lane, start + lane < WIDTH, HALF)
        broken += (values != values).to(tl.int32)
        most = tl.maximum(most, tl.abs(values))
    scale = tl.where(tl.sum(broken, 0) > 0, float("nan"), tl.max(most, 0))
    tl.store(absmax + row, scale)
    factor = _inverse(scale)
    for start in range(0, WIDTH, TILE):
        known = start + lane < WIDTH
        values = _values(x + row * stride, start + lane, known, HALF)
        tl.store(codes + row * WIDTH + start + lane, _codes_of(values, factor), mask=known)


@triton.jit
def _mark_large(x, absmax, large, stride, threshold, WIDTH: tl.constexpr, TILE: tl.constexpr):
    """A row's absmax without its large elements, whose features are marked."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, TILE)
    most = tl.zeros([TILE], tl.float32)
    broken = tl.zeros([TILE], tl.int32)
    for start in range(0, WIDTH, TILE):
        known = start + lane < WIDTH
        values = _values(x + row * stride, start + lane, known, False)
        far = tl.abs(values) >= threshold
        # whatever row marks a feature writes the same
        tl.store(large + start + lane, tl.full([TILE], 1, tl.uint8), mask=known & far)
        broken += (values != values).to(tl.int32)
        most = tl.maximum(most, tl.where(far, 0.0, tl.abs(values)))
    tl.store(absmax + row, tl.where(tl.sum(broken, 0) > 0, float("nan"), tl.max(most, 0)))


@triton.jit
def _round_small(x, codes, absmax, large, columns, rows, stride, WIDTH: tl.constexpr, TILE: tl.constexpr):
    """Codes of a row, 0 in large features; a last program lists those features, and behind them their number."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, TILE)
    if row < rows:
        factor = _inverse(tl.load(absmax + row))
        for start in range(0, WIDTH, TILE):
            known = start + lane < WIDTH
            small = tl.load(large + start + lane, mask=known, other=0) == 0
            values = _values(x + row * stride, start + lane, known & small, False)
            tl.store(codes + row * WIDTH + start + lane, _codes_of(values, factor), mask=known)
    else:
        count = 0
        for start in range(0, WIDTH, TILE):
            marks = tl.load(large + start + lane, mask=start + lane < WIDTH, other=0).to(tl.int32)
            tl.store(columns + count + tl.cumsum(marks, 0) - 1, start + lane, mask=marks > 0)
            count += tl.sum(marks, 0)
        tl.store(columns + WIDTH, count)


@triton.jit
def _multiply(
    a,
    b,
    out,
    M,
    N,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    row = (tl.program_id(1) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = (tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)
    total = tl.zeros([ROWS, COLUMNS], tl.int32)
    for start in range(0, K, DEPTH):
        k = start + tl.arange(0, DEPTH)
        left = tl.load(a + row[:, None] * K + k[None, :], mask=(row < M)[:, None] & (k < K)[None, :], other=0)
        right = tl.load(b + column[None, :] * K + k[:, None], mask=(column < N)[None, :] & (k < K)[:, None], other=0)
        total = tl.dot(left, right, total, out_dtype=tl.int32)
    tl.store(out + row[:, None] * N + column[None, :], total, mask=(row < M)[:, None] & (column < N)[None, :])


@triton.jit
def _scale(
    products,
    x,
    codes,
    x_absmax,
    absmax,
    bias,
    columns,
    y,
    rows,
    stride,
    features,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    LARGE: tl.constexpr,
):
    """y of integer products: both scales, the features that were left out, LARGE at a time, and the bias."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    feature = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)
    there = (row < rows)[:, None] & (feature < features)[None, :]
    scale = tl.load(absmax + feature, mask=feature < features, other=0.0)
    both = tl.load(x_absmax + row, mask=row < rows, other=0.0)[:, None] * scale[None, :]
    whole = tl.load(products + row[:, None] * features + feature[None, :], mask=there, other=0)
    total = whole.to(tl.float32) * both * (1.0 / (127.0 * 127.0))
    if columns is not None:
        large = tl.zeros([ROWS, COLUMNS], tl.float32)
        count = tl.load(columns + WIDTH)
        for start in range(0, loop_end(count), LARGE):
            place = start + tl.arange(0, LARGE)
            column = tl.load(columns + place, mask=place < count, other=0)
            mine = (row < rows)[:, None] & (place < count)[None, :]
            left = tl.load(x + row[:, None] * stride + column[None, :], mask=mine, other=0.0)
            held = (feature < features)[None, :] & (place < count)[:, None]
            right = tl.load(codes + feature[None, :] * WIDTH + column[:, None], mask=held, other=0)
            # codes are integers that every float type holds
            large = add_product(large, left, right.to(tl.float32).to(left.dtype))
        total += large * (scale * (1.0 / 127.0))[None, :]
    if bias is not None:
        total += tl.load(bias + feature, mask=feature < features, other=0.0).to(tl.float32)[None, :]
    tl.store(y + row[:, None] * features + feature[None, :], rounded(total, y.dtype.element_ty), mask=there)


@triton.jit
def _dequantize(codes, absmax, out, WIDTH: tl.constexpr, TILE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * TILE + tl.arange(0, TILE)
    known = place < WIDTH
    values = tl.load(codes + row * WIDTH + place, mask=known, other=0).to(tl.float32)
    values = values * tl.load(absmax + row) * (1.0 / 127.0)
    tl.store(out + row * WIDTH + place, rounded(values, out.dtype.element_ty), mask=known)


def quantize_rowwise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """codes int8 [O, I], absmax f32 [O]; see schema.py."""
    if weight.dtype not in FLOATS:
        return reference.quantize_rowwise(weight)
    return _rounded_rows(unbroken(weight), half=True)


def dequantize_rowwise(codes: Tensor, absmax: Tensor, dtype: torch.dtype) -> Tensor:
    """values [O, I]; see schema.py."""
    if dtype not in FLOATS or codes.numel() == 0:
        return reference.dequantize_rowwise(codes, absmax, dtype)
    out = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    _fill(codes, absmax, out)
    return out


def int8_matmul(a: Tensor, b: Tensor) -> Tensor:
    """a [M, K] times b [N, K] transposed, both int8: int32 [M, N], exact."""
    (rows, width), features = a.shape, b.shape[0]
    if 0 in (rows, width, features):
        return torch.zeros(rows, features, dtype=torch.int32, device=a.device)
    if a.is_cuda and rows >= CUBLAS_ROWS and width % 8 == 0 and features % 8 == 0:
        return torch._int_mm(a.contiguous(), b.contiguous().t())
    if a.is_cuda and torch.cuda.get_device_capability(a.device) < (8, 0):
        # Triton has no integer products for Turing
        return reference.int8_matmul(a, b)
    out = torch.empty(rows, features, dtype=torch.int32, device=a.device)
    # few rows: many programs of few columns, since what takes time is reading b
    tile = (16, 32, 256) if rows <= 16 else (64, 64, 64)
    with current(a):
        _multiply[(triton.cdiv(features, tile[1]), triton.cdiv(rows, tile[0]))](
            *(a.contiguous(), b.contiguous(), out, rows, features, width, *tile), num_stages=4
        )
    return out


def rowwise_linear(x: Tensor, bias: Tensor | None, codes: Tensor, absmax: Tensor, threshold: float) -> Tensor:
    """y [B, O]; see schema.py. Rounded once, and large features multiplied by their codes, unrounded."""
    if x.dtype not in FLOATS or 0 in (x.numel(), codes.numel()):
        return reference.rowwise_linear(x, bias, codes, absmax, threshold)
    x_BI, codes = unbroken(x.reshape(-1, x.shape[-1])), codes.contiguous()
    if threshold > 0:
        x_codes, x_absmax, columns = _small_rows(x_BI, threshold)
    else:
        (x_codes, x_absmax), columns = _rounded_rows(x_BI, half=False), None
    products_BO = int8_matmul(x_codes, codes)
    (rows, width), features = x_BI.shape, codes.shape[0]
    y = torch.empty(*x.shape[:-1], features, dtype=x.dtype, device=x.device)
    few = rows <= 16
    with current(x):
        _scale[(triton.cdiv(rows, 16 if few else 64), triton.cdiv(features, 64))](
            *(products_BO, x_BI, codes, x_absmax, absmax.contiguous(), None if bias is None else bias.contiguous()),
            *(columns, y, rows, x_BI.stride(0), features, width),
            **{"ROWS": 16 if few else 64, "COLUMNS": 64, "LARGE": 16},
        )
    return y


def rowwise_linear_backward(grad: Tensor, codes: Tensor, absmax: Tensor) -> Tensor:
    """The gradient of x [B, I], from that of y [B, O]."""
    if grad.dtype not in FLOATS or codes.numel() == 0:
        return reference.rowwise_linear_backward(grad, codes, absmax)
    with borrowed(tuple(codes.shape), grad.dtype, grad.device) as weight_OI, without_autocast(grad.device):
        _fill(codes, absmax, weight_OI)
        return grad.matmul(weight_OI)


def _tile(width: int) -> int:
    return min(TILE, triton.next_power_of_2(width))


def _rounded_rows(x_BI: Tensor, *, half: bool) -> tuple[Tensor, Tensor]:
    rows, width = x_BI.shape
    codes_BI = torch.empty(rows, width, dtype=torch.int8, device=x_BI.device)
    absmax_B = torch.empty(rows, dtype=torch.float32, device=x_BI.device)
    with current(x_BI):
        _round_rows[(rows,)](
            *(x_BI, codes_BI, absmax_B, x_BI.stride(0)), WIDTH=width, HALF=half, TILE=_tile(width), **EXACT
        )
    return codes_BI, absmax_B


def _small_rows(x_BI: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Codes and absmax of x without its large features; int32 [I + 1], which those are, and last their number."""
    rows, width = x_BI.shape
    codes_BI = torch.empty(rows, width, dtype=torch.int8, device=x_BI.device)
    absmax_B = torch.empty(rows, dtype=torch.float32, device=x_BI.device)
    large_I = torch.zeros(width, dtype=torch.uint8, device=x_BI.device)
    columns = torch.empty(width + 1, dtype=torch.int32, device=x_BI.device)
    tile = {"WIDTH": width, "TILE": _tile(width)}
    with current(x_BI):
        _mark_large[(rows,)](x_BI, absmax_B, large_I, x_BI.stride(0), threshold, **tile)
        _round_small[(rows + 1,)](x_BI, codes_BI, absmax_B, large_I, columns, rows, x_BI.stride(0), **tile, **EXACT)
    return codes_BI, absmax_B, columns


def _fill(codes: Tensor, absmax: Tensor, out: Tensor) -> None:
    rows, width = codes.shape
    tile = _tile(width)
    with current(codes):
        _dequantize[(rows, triton.cdiv(width, tile))](
            codes.contiguous(), absmax.contiguous(), out, WIDTH=width, TILE=tile, **EXACT
        )


serve("quantize_rowwise", quantize_rowwise)
serve("dequantize_rowwise", dequantize_rowwise)
serve("int8_matmul", int8_matmul)
serve("rowwise_linear", rowwise_linear)
serve("rowwise_linear_backward", rowwise_linear_backward)
