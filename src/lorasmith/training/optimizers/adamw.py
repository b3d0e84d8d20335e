"""AdamW: Adam with the decay of weights apart from the gradient. Source: arXiv 1711.05101, algorithm 2."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lorasmith.training.optimizers.rule import Rule, Slot, StepSize


@dataclass(frozen=True)
class AdamW(Rule):
    """m and v are running means of the gradient and its square; both are corrected for their start at zero."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    slots: ClassVar[tuple[Slot, ...]] = (Slot("exp_avg"), Slot("exp_avg_sq", signed=False))

    def update_(self, weight: Tensor, gradient: Tensor, slots: dict[str, Tensor], size: StepSize) -> None:
        beta1, beta2 = self.betas
        mean, square = slots["exp_avg"], slots["exp_avg_sq"]
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        if size.weight_decay:
            weight.mul_(1 - size.learning_rate * size.weight_decay)
        root = square.sqrt().div_((1 - beta2**size.step) ** 0.5).add_(self.eps)
        weight.addcdiv_(mean, root, value=-size.learning_rate / (1 - beta1**size.step))
