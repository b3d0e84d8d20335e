"""What rounding has to know of a layer's inputs: their second moments, and their mean.

I in_features, N rows of input, O out_features.
"""

import torch
from torch import Tensor


class Moments:
    """Sums over the inputs x of a layer: x x^T f32 [I, I], x f32 [I], and how many rows they were taken over."""

    def __init__(self, in_features: int, device: torch.device | str = "cpu") -> None:
        self.products = torch.zeros(in_features, in_features, dtype=torch.float32, device=device)
        self.total = torch.zeros(in_features, dtype=torch.float32, device=device)
        self.rows = 0

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """Count the rows of x [..., I] in."""
        x_NI = x.detach().reshape(-1, x.shape[-1]).float()
        self.products.addmm_(x_NI.T, x_NI)
        self.total += x_NI.sum(dim=0)
        self.rows += x_NI.shape[0]

    @property
    def second(self) -> Tensor:
        """The mean of x x^T, f32 [I, I]."""
        return self.products / max(1, self.rows)

    @property
    def mean(self) -> Tensor:
        """The mean input, f32 [I]."""
        return self.total / max(1, self.rows)

    @property
    def covariance(self) -> Tensor:
        """The mean of (x - mean) (x - mean)^T, f32 [I, I]: what matters where a bias can take up the mean."""
        mean = self.mean
        return self.second - torch.outer(mean, mean)
