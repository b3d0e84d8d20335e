"""The best approximation of a matrix by one of low rank: exact, or by a randomized range finder.

O rows, I columns, R rank.
"""

import torch
from torch import Tensor

from lorasmith.errors import AttachError

# columns beyond the rank that the range finder tries; the source advises 5 or 10
OVERSAMPLING = 10
_SEED = 0


def power_iterations(value: str) -> int | None:
    """N of "NAME_niter_N", None (decompose exactly) of "NAME" alone; AttachError where N is no whole number."""
    _, given, count = value.partition("_niter_")
    if given and not count.isdecimal():
        raise AttachError(f"init_lora_weights={value!r}: behind _niter_ stands a number of iterations, such as 16")
    return int(count) if given else None


def truncated_svd(
    matrix: Tensor, rank: int, iterations: int | None = None, oversampling: int = OVERSAMPLING
) -> tuple[Tensor, Tensor, Tensor]:
    """U [O, R], S [R] falling and V^T [R, I] of matrix [O, I] in f32: U S V^T is the best of rank R.

    With iterations it is found from a random range after that many power iterations, the same at every call: faster
    for large matrices, and nearly the best.
    Source: Halko, Martinsson, Tropp, arXiv 0909.4061, algorithms 4.4 and 5.1.
    """
    if iterations is None:
        u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
        return u[:, :rank], s[:rank], vt[:rank]
    basis = _range(matrix, min(rank + oversampling, *matrix.shape), iterations)
    u, s, vt = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return basis @ u[:, :rank], s[:rank], vt[:rank]


def _range(matrix: Tensor, width: int, iterations: int) -> Tensor:
    # drawn on the CPU with a seed of its own, so that every device and every run begins with the same numbers
    drawn = torch.randn(matrix.shape[1], width, generator=torch.Generator().manual_seed(_SEED))
    basis = torch.linalg.qr(matrix @ drawn.to(matrix)).Q
    for _ in range(iterations):
        basis = torch.linalg.qr(matrix.T @ basis).Q
        basis = torch.linalg.qr(matrix @ basis).Q
    return basis


def balanced_factors(matrix: Tensor, rank: int, scaling: float, iterations: int | None = None) -> tuple[Tensor, Tensor]:
    """A [R, I] and B [O, R] with scaling B A the best of rank R, the root of each singular value in either."""
    u, s, vt = truncated_svd(matrix, rank, iterations)
    root = (s / scaling).sqrt()
    return root[:, None] * vt, u * root
