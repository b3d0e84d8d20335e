"""QPiSSA: A, B take the principal part of the base's weight, and what is left is quantized.

s B A is the best of rank R of W, Q = quantize(W - s B A); with T iterations, T - 1 times more: A, B of the best
s B A = W - Q, then Q = quantize(W - s B A). Q stays as the base. What is left of W is smaller
than W, and so are the errors.
Source: PiSSA, arXiv 2404.02948, section 4 and, for the iterations, its appendix on QPiSSA-T-iters.
"""

import torch

from lorasmith.methods.inits.alternation import Alternating, without
from lorasmith.methods.inits.start import Factors, starts
from lorasmith.methods.inits.truncated import balanced_factors
from lorasmith.methods.site import BaseWeight


class QPissa(Alternating):
    """Alternating quantization and low-rank approximation, begun by taking the principal part."""

    def from_base(self, weight: BaseWeight, rank: int, scaling: float, fresh: bool) -> Factors | None:
        if self.already_there(weight, fresh, repeatable=False):
            return None
        dense_OI = weight(torch.float32)
        factors = balanced_factors(dense_OI, rank, scaling, self.iterations)
        weight.quantize(without(dense_OI, factors, scaling), self.config.scheme)
        for _ in range(self.config.loftq_iter - 1):
            factors = self.rest(dense_OI, weight, rank, scaling)
            weight.quantize(without(dense_OI, factors, scaling), self.config.scheme)
        return factors


starts.add("qpissa", QPissa)
