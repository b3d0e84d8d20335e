"""The thin products in plain PyTorch: the specification, on any device."""

from torch import Tensor

from lorasmith.ops.library import implement_reference


def project(x: Tensor, a: Tensor, scale: float) -> Tensor:
    """h [N, R]; see schema.py."""
    # beta 0 reads nothing of h: the scale costs no pass and no rounding of its own
    return a.new_empty(x.shape[0], a.shape[0]).addmm_(x.to(a.dtype), a.T, beta=0, alpha=scale)


def add_update(y: Tensor, h: Tensor, b: Tensor, out: Tensor) -> None:
    """Fill out [N, F]; see schema.py."""
    if out is y and y.dtype == h.dtype:
        y.addmm_(h, b)
    else:
        out.copy_(y.to(h.dtype).addmm(h, b))


def outer(h: Tensor, x: Tensor) -> Tensor:
    """[R, F]; see schema.py."""
    return h.T @ x.to(h.dtype)


implement_reference("low_rank_project", project)
implement_reference("low_rank_add", add_update)
implement_reference("low_rank_outer", outer)
