"""A and B both away from zero, their product zero: A from the odd rows of a random orthogonal matrix, B from the even.

Source: https://datta0.github.io/posts/rethink-lora-init, "orthogonal initialisation"; in PEFT since 0.16.
"""

from typing import Any

import torch
from torch import Tensor

from lorasmith.errors import AttachError
from lorasmith.methods.inits.start import Start, starts


class Orthogonal(Start):
    """B A = 0 with neither at zero, so both have gradients at the first step."""

    serves_convolutions = False

    def check(self, rank: int, most: int) -> None:
        if rank % 2:
            raise AttachError(f"r={rank}: the orthogonal start halves the rank; choose an even one")

    @torch.no_grad()
    def draw_(self, a: Tensor, b: Tensor, rank: int) -> None:
        half = rank // 2
        options: dict[str, Any] = {"device": a.device, "dtype": torch.float32}
        rows_RR = torch.linalg.qr(torch.randn(rank, rank, **options)).Q
        a.copy_((torch.randn(a.shape[1], half, **options) @ rows_RR[0::2]).T / 10)
        b.copy_(torch.randn(b.shape[0], half, **options) @ rows_RR[1::2] / 10)


starts.add("orthogonal", Orthogonal)
