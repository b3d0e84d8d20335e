"""OLoRA: LoRA begins at the first columns of an orthonormal basis of the base's weight.

W = Q R; B is the first columns of Q, A the first rows of R, and s B A is taken off beside the base, as for PiSSA.
Source: arXiv 2406.01775, section 3, algorithm 1; that s multiplies the product without being divided out is PEFT's.
"""

import torch

from lorasmith.methods.inits.start import Factors, Start, starts
from lorasmith.methods.site import BaseWeight


class Olora(Start):
    """An orthonormal B from the weight's QR decomposition."""

    from_weight = True
    shifts = True
    serves_convolutions = False

    def from_base(self, weight: BaseWeight, rank: int, scaling: float, fresh: bool) -> Factors | None:
        basis_OK, rows_KI = torch.linalg.qr(weight(torch.float32))
        return rows_KI[:rank], basis_OK[:, :rank]


starts.add("olora", Olora)
