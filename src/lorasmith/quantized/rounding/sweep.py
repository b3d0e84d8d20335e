"""One pass over the columns of a weight, each rounded to what the errors of the others leave for it.

The two ways to round with an eye on the layer's output are the same pass with another matrix F [I, I] of zero diagonal:
column j becomes the level nearest to target_j + sum_k F[j, k] error_k.

forward_feedback: GPTQ (arXiv 2210.17323) in the form of LDLQ (QuIP, arXiv 2307.13304, section 3): with H = U D U^T, U
unit upper triangular, F[j, k] = U[k, j] for k < j. Errors of earlier columns only; each column bears what all before it
left, weighted so that later ones can make up for it.

mutual_feedback: coordinate descent (QuantEase, arXiv 2309.01885, section 3): F[j, k] = H[j, k] / H[j, j]. Each column
becomes the best one beside all the others as they stand, so the error tr(E H E^T) never grows.

I in_features, O out_features, J a stretch of columns whose effect on one another is followed column by column while
that of all others comes as one product.
"""

import torch
from torch import Tensor

from lorasmith.quantized.rounding.grid import Grid

STRETCH = 64


def forward_feedback(hessian: Tensor) -> Tensor:
    """F [I, I] of error compensation, from the damped second moments of the inputs f32 [I, I].

    Raises torch.linalg.LinAlgError where hessian is not positive definite.
    """
    # H = U D U^T is the Cholesky factorization of the columns in reverse
    upper = torch.linalg.cholesky(hessian.flip(0, 1)).flip(0, 1)
    return (upper / upper.diagonal()).T.tril(-1)


def mutual_feedback(hessian: Tensor) -> Tensor:
    """F [I, I] of coordinate descent, from the second moments of the inputs f32 [I, I]."""
    feedback = hessian / hessian.diagonal()[:, None]
    return feedback.fill_diagonal_(0)


def sweep_(values_IO: Tensor, target_IO: Tensor, scales_IO: Tensor, grid: Grid, feedback: Tensor) -> None:
    """Round every column once, in order; values are levels, and target = value x scale where nothing is lost."""
    errors_IO = target_IO - values_IO * scales_IO
    inverse_IO = torch.where(scales_IO == 0, 0, 1 / scales_IO)
    for start in range(0, len(target_IO), STRETCH):
        stretch = slice(start, start + STRETCH)
        left_JO = feedback[stretch] @ errors_IO
        inner_JJ = feedback[stretch, stretch]
        for j in range(len(left_JO)):
            column = start + j
            wanted = (target_IO[column] + left_JO[j]) * inverse_IO[column]
            values_IO[column] = grid.nearest(wanted)
            error = target_IO[column] - values_IO[column] * scales_IO[column]
            if j + 1 < len(left_JO):
                left_JO[j + 1 :].addr_(inner_JJ[j + 1 :, j], error - errors_IO[column])
            errors_IO[column] = error
