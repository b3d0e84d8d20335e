"""A matrix as the product of two thin ones, b [out, rank] a [rank, in]: sums, norms, the nearest one of lower rank.

What can be said of the product is said from the factors where these are thin: with b = Q_b R_b and a^T = Q_a R_a, the
singular values of b a are those of the small R_b R_a^T.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Factors(NamedTuple):
    """The matrix b a; a [rank, in], b [out, rank]."""

    a: Tensor
    b: Tensor

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    def product(self) -> Tensor:
        """The matrix [out, in]."""
        return self.b @ self.a


class Decomposition(NamedTuple):
    """u [out, n], s [n] falling, vh [n, in]: the matrix u diag(s) vh."""

    u: Tensor
    s: Tensor
    vh: Tensor

    def leading(self, rank: int) -> Factors:
        """The nearest matrix of this rank, its singular values in b."""
        return Factors(self.vh[:rank].contiguous(), (self.u[:, :rank] * self.s[:rank]).contiguous())

    def balanced(self, rank: int) -> Factors:
        """The same matrix with the roots of the singular values in both factors, as training likes them."""
        root = self.s[:rank].sqrt()
        return Factors((root[:, None] * self.vh[:rank]).contiguous(), (self.u[:, :rank] * root).contiguous())


def decompose(matrix: Tensor, driver: str | None = None) -> Decomposition:
    """The singular value decomposition of matrix [out, in], thin; driver names cuSOLVER's way on a GPU."""
    return Decomposition(*torch.linalg.svd(matrix, full_matrices=False, driver=driver))


def decompose_product(factors: Factors) -> Decomposition:
    """The decomposition of b a without making it, for a rank below both of its sides."""
    if factors.rank >= min(factors.b.shape[0], factors.a.shape[1]):
        return decompose(factors.product())
    q_b, r_b = torch.linalg.qr(factors.b)
    q_a, r_a = torch.linalg.qr(factors.a.T)
    u, s, vh = decompose(r_b @ r_a.T)
    return Decomposition(q_b @ u, s, vh @ q_a.T)


def decompose_roughly(matrix: Tensor, rank: int, generator: torch.Generator) -> Decomposition:
    """The first rank singular values and vectors of matrix by subspace iteration, for matrices too large for the whole.

    The values are at most the true ones, and near them where these fall off. Source: Halko, Martinsson and Tropp,
    arXiv 0909.4061, algorithms 4.4 and 5.1.
    """
    columns = min(rank + 16, *matrix.shape)
    start = torch.randn(matrix.shape[1], columns, generator=generator, device=generator.device)
    q = torch.linalg.qr(matrix @ start.to(matrix)).Q
    for _ in range(4):
        q = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ q).Q).Q
    u, s, vh = decompose(q.T @ matrix)
    return Decomposition((q @ u)[:, :rank], s[:rank], vh[:rank])


def beside(parts: Sequence[Factors]) -> Factors:
    """The sum of parts, exactly: their factors side by side, the rank that of all together."""
    return Factors(torch.cat([part.a for part in parts]), torch.cat([part.b for part in parts], 1))


def norm(factors: Factors) -> float:
    """The Frobenius norm of b a."""
    if factors.rank >= min(factors.b.shape[0], factors.a.shape[1]):
        return float(factors.product().norm())
    return float((torch.linalg.qr(factors.b).R @ torch.linalg.qr(factors.a.T).R.T).norm())
