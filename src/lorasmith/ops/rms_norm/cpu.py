"""Root mean square norms on a CPU through csrc/, in f32 and bf16; other types go to the reference."""

import torch
from torch import Tensor

from lorasmith.ops.library import implement_native
from lorasmith.ops.native import FLOATS, extension, kernels, level, plain
from lorasmith.ops.rms_norm import reference


def rms_norm(x: Tensor, weight: Tensor, eps: float, plus_one: bool, rounds_first: bool) -> tuple[Tensor, Tensor]:
    """y [N, D] and the factors f32 [N]; see schema.py."""
    if x.dtype not in FLOATS or x.numel() == 0:
        return reference.rms_norm(x, weight, eps, plus_one, rounds_first)
    x_ND = plain(x).view(-1, weight.shape[0])
    y = torch.empty(x.shape, dtype=x.dtype)
    rms = torch.empty(x.shape[:-1], dtype=torch.float32)
    threads = torch.get_num_threads()
    weight, out = plain(weight), y.view(x_ND.shape)
    kernels().rms_norm(x_ND, weight, rms, out, eps, plus_one, rounds_first, threads, level())
    return y, rms


def rms_norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor, rms: Tensor, plus_one: bool, rounds_first: bool, weight_trains: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of x [N, D] and weight [D]; an empty one unless weight_trains."""
    if x.dtype not in FLOATS or x.numel() == 0:
        return reference.rms_norm_backward(grad, x, weight, rms, plus_one, rounds_first, weight_trains)
    width, threads = weight.shape[0], torch.get_num_threads()
    x_ND = plain(x).view(-1, width)
    grad_ND = plain(grad).view(-1, width)
    grad_x = torch.empty(x.shape, dtype=x.dtype)
    # the sums of each thread's rows
    sums = torch.zeros(threads if weight_trains else 0, width)
    kernels().rms_norm_backward(
        grad_ND,
        x_ND,
        plain(weight),
        plain(rms),
        grad_x.view(x_ND.shape),
        sums,
        plus_one,
        rounds_first,
        threads,
        level(),
    )
    return grad_x, sums.sum(0).to(weight.dtype) if weight_trains else weight.new_empty(0)


if extension() is not None:
    implement_native("rms_norm", "cpu", rms_norm)
    implement_native("rms_norm_backward", "cpu", rms_norm_backward)
