"""Principal directions of rows that come in batches, without keeping the rows.

N rows, I features, K directions.
"""

import math

import torch
from torch import Tensor

from lorasmith.methods.inits.truncated import truncated_svd

_ITERATIONS = 4


class IncrementalSvd:
    """The K largest singular values and right singular vectors of all rows so far, their mean removed.

    Each batch is decomposed below what is known and a row that corrects for the change of the mean.
    Source: Ross, Lim, Lin, Yang, "Incremental learning for robust visual tracking", IJCV 77 (2008), section 3.1; EVA,
    arXiv 2410.07170, appendix on incremental SVD.
    """

    directions: Tensor  # [K, I], orthonormal
    singular: Tensor  # [K], falling

    def __init__(self, width: int, components: int, device: torch.device) -> None:
        self.components = components
        self.rows = 0
        # f64: sums over all rows
        self.mean = torch.zeros(width, dtype=torch.float64, device=device)
        self.scatter = 0.0

    @torch.no_grad()
    def add(self, rows: Tensor) -> None:
        """Take in rows [N, I] of any float type; N is at least K."""
        count, old = rows.shape[0], self.rows
        wide = rows.double()
        mean = wide.mean(0)
        drift = self.mean - mean
        weight = old * count / (old + count)
        self.scatter += float((wide - mean).square().sum() + weight * drift.square().sum())
        stacked = [(wide - mean).float()]
        if old:
            stacked = [self.singular[:, None] * self.directions, *stacked, (math.sqrt(weight) * drift).float()[None]]
        self.mean = (old * self.mean + count * mean) / (old + count)
        self.rows = old + count
        # twice the range that is asked for, since inputs of a layer have flat spectra
        _, self.singular, self.directions = truncated_svd(
            torch.cat(stacked), self.components, _ITERATIONS, self.components
        )

    def explained(self) -> Tensor:
        """The share [K] of the rows' variance along each direction."""
        return self.singular.double().square() / self.scatter
