"""What an update rule is given for a parameter's gradient."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from lorasmith.methods import FactorPair


class Gradients(ABC):
    """Turns gradients into what the rule sees of them."""

    @abstractmethod
    def seen(self, name: str, gradient: Tensor) -> Tensor:
        """What the rule sees for the parameter of this name."""


class Plain(Gradients):
    """Gradients as they are."""

    def seen(self, name: str, gradient: Tensor) -> Tensor:
        return gradient


class Projected(Gradients):
    """LoRA-FA: with A frozen, the gradient of B under which s B A moves as the gradient of the weight would have it.

    That is the nearest to it in the rows of A: g (A A^T)^-1 / s^2. Pairs are by the name of B; the inverses are made at
    the first step, since A does not move. Source: arXiv 2308.03303 for the frozen A; the correction is that of the
    authors' optimizer, which PEFT has as LoraFAOptimizer.
    """

    def __init__(self, pairs: Mapping[str, FactorPair]) -> None:
        self.pairs = pairs
        self._inverses: dict[str, Tensor] = {}

    def seen(self, name: str, gradient: Tensor) -> Tensor:
        pair = self.pairs.get(name)
        if pair is None:
            return gradient
        if name not in self._inverses:
            self._inverses[name] = inverse_gram(pair)
        return projected(gradient, self._inverses[name], pair)


@torch.no_grad()
def inverse_gram(pair: FactorPair) -> Tensor:
    """(A A^T)^-1 of each expert, [E, R, R] in f32; a pseudo-inverse, should rows of A depend on each other."""
    # E experts, R rank, K elements of a row
    a_ERK = pair.a.detach().double().flatten(1).unflatten(0, (pair.experts, -1))
    return torch.linalg.pinv(a_ERK @ a_ERK.mT, hermitian=True).float()


@torch.no_grad()
def projected(gradient: Tensor, inverse_ERR: Tensor, pair: FactorPair) -> Tensor:
    """The gradient of B [O, R x E, ...] that the rule sees, in f32."""
    wide_EOR = gradient.float().flatten(1).unflatten(1, (-1, pair.experts)).permute(2, 0, 1)
    seen_EOR = (wide_EOR @ inverse_ERR) / pair.scaling**2
    return seen_EOR.permute(1, 2, 0).reshape(gradient.shape)
