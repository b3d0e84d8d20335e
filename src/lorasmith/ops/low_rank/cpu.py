"""The thin products on a CPU through csrc/, equal to reference.py up to the order of f32 sums.

Beyond MOST_RANK they are thin no more, and the general matrix product is as fast (measured on AVX2).
"""

import torch
from torch import Tensor

from lorasmith.ops.library import implement_native
from lorasmith.ops.low_rank import reference
from lorasmith.ops.native import FLOATS, extension, kernels, level, plain

MOST_RANK = 32


def project(x: Tensor, a: Tensor, scale: float) -> Tensor:
    """h [N, R]; see schema.py."""
    if not _served(x, a, a.shape[0]):
        return reference.project(x, a, scale)
    h_NR = torch.empty(x.shape[0], a.shape[0])
    kernels().low_rank_project(plain(x), plain(a), scale, h_NR, a.shape[0], torch.get_num_threads(), level())
    return h_NR


def add_update(y: Tensor, h: Tensor, b: Tensor, out: Tensor) -> None:
    """Fill out [N, F]; see schema.py."""
    widens = y.dtype != out.dtype and y.dtype != torch.float32
    if widens or not _served(y, b, b.shape[0]) or out.dtype not in FLOATS or not out.is_contiguous():
        reference.add_update(y, h, b, out)
        return
    # LoRA's B is stored [F, R], and the kernel turns it as it reads it
    transposed = not b.is_contiguous()
    parts = (plain(y), plain(h), plain(b.T if transposed else b), out)
    kernels().low_rank_add(*parts, b.shape[0], transposed, torch.get_num_threads(), level())


def outer(h: Tensor, x: Tensor) -> Tensor:
    """[R, F]; see schema.py."""
    if not _served(x, h, h.shape[1]):
        return reference.outer(h, x)
    out_RF = torch.empty(h.shape[1], x.shape[1])
    kernels().low_rank_outer(plain(h), plain(x), out_RF, h.shape[1], torch.get_num_threads(), level())
    return out_RF


def _served(values: Tensor, factor: Tensor, rank: int) -> bool:
    thin = 0 < rank <= MOST_RANK
    return thin and values.numel() > 0 and values.dtype in FLOATS and factor.dtype == torch.float32


if extension() is not None:
    implement_native("low_rank_project", "cpu", project)
    implement_native("low_rank_add", "cpu", add_update)
    implement_native("low_rank_outer", "cpu", outer)
