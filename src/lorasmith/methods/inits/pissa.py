"""PiSSA: LoRA begins as the principal part of the base's weight, and the base keeps the rest.

W = U S V^T; A = (S / s)^(1/2) V^T and B = U (S / s)^(1/2) of the R largest singular values. "pissa" decomposes exactly,
"pissa_niter_N" by N power iterations. Source: arXiv 2404.02948, section 3, equations 2 to 4.

Here the base is left as it is and s B0 A0 is taken off beside it: the same function, while the adapter can be switched
off, swapped and merged.
"""

import logging
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch

from lorasmith.methods.inits.start import Factors, Start, starts
from lorasmith.methods.inits.truncated import balanced_factors, power_iterations
from lorasmith.methods.site import BaseWeight

log = logging.getLogger(__name__)


@cache
def _warn_of_chance() -> None:
    log.warning(
        "the adapter was saved without its start, which PEFT draws anew for pissa_niter_N: its function is met only as "
        "far as the decomposition is exact; let PEFT convert it (path_initial_model_for_weight_conversion)"
    )


class Pissa(Start):
    """The principal singular values and vectors."""

    from_weight = True
    shifts = True
    serves_convolutions = False

    def __init__(self, value: str, quantization: Mapping[str, Any]) -> None:
        super().__init__("pissa", quantization)
        self.iterations = power_iterations(value)

    def from_base(self, weight: BaseWeight, rank: int, scaling: float, fresh: bool) -> Factors | None:
        if not fresh and self.iterations is not None:
            _warn_of_chance()
        return balanced_factors(weight(torch.float32), rank, scaling, self.iterations)


starts.add("pissa", Pissa)
