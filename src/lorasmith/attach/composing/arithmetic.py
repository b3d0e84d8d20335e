"""Combining tensors that several fine-tunings made of one: weighted sums, TIES, DARE, pruning by magnitude.

A task tensor is the change that one adapter makes; all of one call have the same shape. Sources: task arithmetic, arXiv
2212.04089; TIES, arXiv 2306.01708, section 3; DARE, arXiv 2311.03099, section 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from lorasmith.errors import AttachError

Pruning = Literal["none", "magnitude", "random"]
MajoritySign = Literal["total", "frequency"]


@dataclass(frozen=True)
class Arithmetic:
    """How task tensors become one: what is pruned, and whether signs are elected before the rest is averaged (TIES).

    density is the share of each tensor that pruning keeps; sign says what elects a sign, the sum of the values or the
    number of them. Raises AttachError for a density outside (0, 1], or none where something is pruned.
    """

    pruning: Pruning = "none"
    elects: bool = False
    density: float | None = None
    sign: MajoritySign = "total"

    def __post_init__(self) -> None:
        if self.sign not in ("total", "frequency"):
            raise AttachError(f"majority_sign_method={self.sign!r} is not one of total, frequency")
        if self.pruning == "none":
            return
        if self.density is None:
            raise AttachError("density is missing: it is the share of each update that stays, such as 0.5")
        if not 0 < self.density <= 1:
            raise AttachError(f"density={self.density} must lie in (0, 1]: it is the share of each update that stays")

    def __call__(self, tasks: Sequence[Tensor], weights: Sequence[float], generator: Generator) -> Tensor:
        """The combined tensor of tasks; generator draws what random pruning drops."""
        kept = torch.stack([self._pruned(task, generator) for task in tasks])
        scale = torch.tensor(weights, dtype=kept.dtype, device=kept.device)
        weighted = kept * scale.reshape(-1, *(1 for _ in kept.shape[1:]))
        # signs are elected by what pruning left, before the weights
        return disjoint_mean(weighted, agreeing(kept, self.sign)) if self.elects else weighted.sum(0)

    def _pruned(self, task: Tensor, generator: Generator) -> Tensor:
        if self.pruning == "none" or self.density is None or self.density == 1:
            return task
        if self.pruning == "magnitude":
            return largest(task, self.density)
        return drop_at_random(task, self.density, generator)


def largest(task: Tensor, density: float) -> Tensor:
    """task with zeros for all but its int(density * elements) entries of largest magnitude."""
    kept = int(density * task.numel())
    mask = torch.zeros(task.numel(), dtype=torch.bool, device=task.device)
    mask[task.abs().flatten().topk(kept).indices] = True
    return task * mask.reshape(task.shape)


def drop_at_random(task: Tensor, density: float, generator: Generator) -> Tensor:
    """task with each entry kept with probability density, and divided by it, so that the expectation stays.

    The mask is drawn where generator is, on the CPU, so that every device drops the same entries.
    """
    mask = torch.full(task.shape, density, device=generator.device).bernoulli(generator=generator)
    return task * mask.to(task) / density


def agreeing(tasks: Tensor, method: MajoritySign) -> Tensor:
    """Where each of the tasks [tasks, ...] has the sign that most of them have; a zero agrees with none."""
    signs = tasks.sign()
    votes = (tasks if method == "total" else signs).sum(0)
    return signs == torch.where(votes >= 0, 1.0, -1.0)


def disjoint_mean(tasks: Tensor, agree: Tensor) -> Tensor:
    """The mean over those of the tasks [tasks, ...] that agree; zero where none does."""
    return (tasks * agree).sum(0) / agree.sum(0).clamp(min=1)
