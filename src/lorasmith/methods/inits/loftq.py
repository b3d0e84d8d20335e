"""LoftQ: the base is quantized and A, B approximate what that loses, in turns.

A, B = 0; T times: Q = quantize(W - s B A), then A, B of the best s B A = W - Q of rank R. Q stays as the base.
Source: arXiv 2310.08659, section 3.2, algorithm 1.
"""

import torch

from lorasmith.methods.inits.alternation import Alternating, without
from lorasmith.methods.inits.start import Factors, starts
from lorasmith.methods.site import BaseWeight


class LoftQ(Alternating):
    """Alternating quantization and low-rank approximation, begun by quantizing."""

    def from_base(self, weight: BaseWeight, rank: int, scaling: float, fresh: bool) -> Factors | None:
        if self.already_there(weight, fresh, repeatable=self.config.loftq_iter == 1):
            return None
        dense_OI = weight(torch.float32)
        weight.quantize(dense_OI, self.config.scheme)
        for _ in range(self.config.loftq_iter - 1):
            factors = self.rest(dense_OI, weight, rank, scaling)
            weight.quantize(without(dense_OI, factors, scaling), self.config.scheme)
        return self.rest(dense_OI, weight, rank, scaling) if fresh else None


starts.add("loftq", LoftQ)
