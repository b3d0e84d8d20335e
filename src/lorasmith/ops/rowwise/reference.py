"""LLM.int8() in plain PyTorch: the specification, on every device."""

import torch
from torch import Tensor
from torch.nn import functional as F

from lorasmith.ops.library import implement_reference
from lorasmith.ops.precision import product_dtype, without_autocast
from lorasmith.ops.scratch import borrowed

# Products of two codes are at most 127 * 127, and f32 holds integers up to 2**24 exactly: 1024 products fit.
EXACT_PRODUCTS = 1024


def quantize_rowwise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """codes int8 [O, I], absmax f32 [O]; see schema.py."""
    return round_rowwise(weight.half())


def round_rowwise(rows: Tensor) -> tuple[Tensor, Tensor]:
    """round(row x (127 / absmax)) int8 and absmax f32 of each row; a row of zeros has codes 0."""
    absmax = rows.abs().amax(dim=1).float()
    codes = torch.round(rows * (127.0 / absmax)[:, None])
    # 0 * (127 / 0) is NaN; so is everything in a row that is not finite, which the caller refuses.
    return codes.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).to(torch.int8), absmax


def dequantize_rowwise(codes: Tensor, absmax: Tensor, dtype: torch.dtype) -> Tensor:
    """values [O, I]; see schema.py."""
    return (codes * absmax.view(-1, 1) * (1.0 / 127.0)).to(dtype)


def int8_matmul(a: Tensor, b: Tensor) -> Tensor:
    """a [M, K] times b [N, K] transposed, both int8: int32 [M, N], exact."""
    total = torch.zeros(a.shape[0], b.shape[0], dtype=torch.int32, device=a.device)
    for part_a, part_b in zip(a.split(EXACT_PRODUCTS, dim=1), b.split(EXACT_PRODUCTS, dim=1), strict=True):
        total += F.linear(part_a.float(), part_b.float()).to(torch.int32)
    return total


def rowwise_linear(x: Tensor, bias: Tensor | None, codes: Tensor, absmax: Tensor, threshold: float) -> Tensor:
    """y [B, O]; see schema.py. As in bitsandbytes, only the large elements are left out of a row's absmax."""
    x_BI = x.reshape(-1, x.shape[-1])
    large_BI = x_BI.abs() >= threshold if threshold > 0 else torch.zeros_like(x_BI, dtype=torch.bool)
    outlier_I = large_BI.any(dim=0)
    x_codes, x_absmax = round_rowwise(x_BI.masked_fill(large_BI, 0).float())
    x_codes.masked_fill_(outlier_I, 0)
    products_BO = torch.ops.lorasmith.int8_matmul.default(x_codes, codes)
    y_BO = products_BO * (x_absmax[:, None] * absmax.view(1, -1)) * (1.0 / (127.0 * 127.0))
    if bias is not None:
        y_BO = y_BO + bias
    wide = product_dtype(x.dtype, x.device)
    y_BO = y_BO.to(wide)
    columns = outlier_I.nonzero().view(-1)
    if columns.numel():
        weight_OC = dequantize_rowwise(codes[:, columns], absmax, wide)
        with without_autocast(x.device):
            y_BO = y_BO.addmm(x_BI[:, columns].to(wide), weight_OC.t())
    return y_BO.to(x.dtype).view(*x.shape[:-1], codes.shape[0])


def rowwise_linear_backward(grad: Tensor, codes: Tensor, absmax: Tensor) -> Tensor:
    """The gradient of x [B, I], from that of y [B, O]."""
    wide = product_dtype(grad.dtype, grad.device)
    with borrowed(tuple(codes.shape), wide, grad.device) as weight_OI, without_autocast(grad.device):
        # An f32 factor: the product is rounded to the dtype of the gradient once.
        weight_OI.copy_(codes).mul_(absmax.view(-1, 1) * (1.0 / 127.0))
        return grad.to(wide).matmul(weight_OI).to(grad.dtype)


implement_reference("quantize_rowwise", quantize_rowwise)
implement_reference("dequantize_rowwise", dequantize_rowwise)
implement_reference("int8_matmul", int8_matmul)
implement_reference("rowwise_linear", rowwise_linear)
implement_reference("rowwise_linear_backward", rowwise_linear_backward)
