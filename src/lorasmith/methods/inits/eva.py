"""EVA: A takes the principal directions of the layer's inputs, and layers share the ranks by explained variance.

B is zero, so the model's function is unchanged. The directions need data: until they are there the start is the plain
one (`attach/explained_variance.py` puts them in place). Source: arXiv 2410.07170, section 3.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lorasmith.errors import AttachError
from lorasmith.methods.inits.start import Start, starts
from lorasmith.methods.kinds import require_kinds


@dataclass
class EvaConfig:
    """PEFT's fields and defaults.

    A layer can get up to rho times its rank. A layer's directions count as found when each has a cosine of tau or more
    with the one of the batch before. use_label_mask leaves positions out whose label is label_mask_value. whiten
    divides a direction by the root of its singular value. adjust_scaling_factors keeps a layer's scaling when its rank
    changes.
    Raises AttachError for rho below 1 and tau outside 0 to 1.
    """

    rho: float = 2.0
    tau: float = 0.99
    use_label_mask: bool = True
    label_mask_value: int = -100
    whiten: bool = False
    adjust_scaling_factors: bool = True

    def __post_init__(self) -> None:
        require_kinds(self)
        if self.rho < 1:
            raise AttachError(f"rho={self.rho} must be at least 1, which leaves every rank as it is")
        if not 0 <= self.tau <= 1:
            raise AttachError(f"tau={self.tau} must lie in [0, 1]; it is a cosine")


class Eva(Start):
    """The plain start, waiting for data."""


starts.add("eva", Eva)


def shared_ranks(explained: Mapping[str, Tensor], budget: int) -> dict[str, int]:
    """The budget of ranks, given to the directions that explain most; explained [K] falls, by layer.

    Of equals the earlier layer's comes first. Source: arXiv 2410.07170, section 3.3, equation 5.
    """
    owners = [path for path, shares in explained.items() for _ in shares]
    shares = torch.cat([values.double().cpu() for values in explained.values()])
    ranks = dict.fromkeys(explained, 0)
    for place in shares.argsort(descending=True, stable=True)[:budget].tolist():
        ranks[owners[place]] += 1
    return ranks
