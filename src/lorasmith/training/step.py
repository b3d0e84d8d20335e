"""One optimizer step: micro-batches in, moved parameters out, or an error that says why not."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lorasmith.data.batch import Batch
from lorasmith.errors import RunError
from lorasmith.methods import TrainingPart
from lorasmith.training.loss import Loss
from lorasmith.training.loss_scale import LossScale, is_finite
from lorasmith.training.optimizers import Optimizer
from lorasmith.training.precision import computing
from lorasmith.training.step_in_backward import moved_in_backward


@dataclass(frozen=True)
class StepResult:
    """nll is summed over supervised targets; tokens are those that are not padding.

    taken is False where float16 overflowed and nothing was moved; nll and grad_norm may then be infinite.
    """

    nll: float
    supervised: int
    tokens: int
    grad_norm: float
    taken: bool = True

    @property
    def loss(self) -> float:
        """Mean nll of a target, in nats."""
        return self.nll / self.supervised


@dataclass(frozen=True)
class TrainingStep:
    """Forward, backward, clip, optimizer. autocast is the dtype of activations, or None for the weights' own.

    in_backward lets each parameter move as soon as its gradient is there, without clip, parts and scale.
    parts are what methods do during the training of total steps, by adapter. Their penalties are added once, to the
    mean loss of a step; its result does not count them. scale is that of float16, None in other types.
    """

    parameters: Mapping[str, nn.Parameter]
    optimizer: Optimizer
    loss: Loss
    clip: float | None
    autocast: torch.dtype | None
    parts: Mapping[str, TrainingPart] = field(default_factory=dict)
    total: int | None = None
    scale: LossScale | None = None
    in_backward: bool = False

    def __call__(self, step: int, batches: Sequence[Batch], learning_rate: float) -> StepResult:
        """Take step number step (from 1) on micro-batches, weighing each target equally.

        Raises RunError, with parameters and optimizer unchanged, for no targets, a loss or gradient that is not
        finite (with a scale, once that is at its end), and a loss that no trained parameter has a part in.
        in_backward they have moved by a gradient that is not finite.
        """
        supervised = self.begin(step, batches)
        if self.in_backward:
            return self._in_backward(step, batches, supervised, learning_rate)
        nll = sum(self._backward(step, batch, supervised) for batch in batches)
        return self.finish(step, batches, nll, learning_rate)

    def begin(self, step: int, batches: Sequence[Batch]) -> int:
        """Forget gradients, and count the targets that the step weighs equally; RunError where there is none."""
        supervised = sum(batch.supervised for batch in batches)
        if supervised == 0:
            raise RunError(
                f"step {step}: none of the {len(batches)} micro-batches has a token to learn from; "
                "check loss_on, max_length and the chat template (all labels are masked)"
            )
        self.optimizer.zero_grad()
        return supervised

    def finish(self, step: int, batches: Sequence[Batch], nll: float, learning_rate: float) -> StepResult:
        """Clip the gradients of batches, whose losses sum to nll, and move the parameters."""
        for part in self.parts.values():
            penalty = part.penalty()
            if penalty is not None:
                self.scaled(penalty).backward()
        grad_norm = self._clip(step)
        taken = self.scale is None or is_finite(nll, grad_norm)
        if taken:
            self._move(step, learning_rate)
        elif self.scale is not None:
            self.scale.overflowed(step)
        self.optimizer.zero_grad()
        return _result(batches, nll, grad_norm, taken)

    def _move(self, step: int, learning_rate: float) -> None:
        self.optimizer.step(learning_rate)
        if self.scale is not None:
            self.scale.took()
        for part in self.parts.values():
            part.after_step(step, self.total)

    def scaled(self, loss: Tensor) -> Tensor:
        """What the backward pass of loss begins with."""
        return loss if self.scale is None else loss * self.scale.factor

    def checked(self, step: int, nll: Tensor) -> float:
        """The value of a summed loss; RunError where no trained parameter has a part in it, or it is not finite.

        With a scale the latter is for the end of the step to say.
        """
        value = nll.item()
        if self.scale is None and not math.isfinite(value):
            raise RunError(
                f"step {step}: the loss is {value}; lower learning_rate or lengthen warmup, and check the data "
                "and base model for NaN"
            )
        if not nll.requires_grad:
            raise RunError(f"step {step}: the loss depends on no trained parameter; check target_modules")
        return value

    def precision(self) -> torch.autocast:
        """The context in which forwards run."""
        return computing(next(iter(self.parameters.values())), self.autocast)

    def _backward(self, step: int, batch: Batch, supervised: int) -> float:
        if batch.supervised == 0:
            return 0.0
        with self.precision():
            nll = self.loss(batch)
        value = self.checked(step, nll)
        self.scaled(nll / supervised).backward()
        return value

    def _in_backward(self, step: int, batches: Sequence[Batch], supervised: int, learning_rate: float) -> StepResult:
        assert self.clip is None and self.scale is None and not self.parts
        with moved_in_backward(self.optimizer, learning_rate) as norms:
            nll = sum(self._backward(step, batch, supervised) for batch in batches)
        # in the order in which the norms of an ordinary step are summed
        ordered = [norms[name] for name in self.parameters if name in norms]
        total = torch.linalg.vector_norm(torch.stack(ordered)) if ordered else None
        return _result(batches, nll, self._checked_norm(step, total))

    def _clip(self, step: int) -> float:
        moved = [parameter for parameter in self.parameters.values() if parameter.grad is not None]
        if self.scale is not None:
            self.scale.unscale_([parameter.grad for parameter in moved if parameter.grad is not None])
        limit = math.inf if self.clip is None else self.clip
        return self._checked_norm(step, nn.utils.clip_grad_norm_(moved, limit) if moved else None)

    def _checked_norm(self, step: int, total: Tensor | None) -> float:
        """The norm of all gradients, of which there are none where total is None; RunError where it says trouble."""
        if total is None:
            raise RunError(f"step {step}: no trained parameter received a gradient; check target_modules")
        norm = total.item()
        if self.scale is None and not math.isfinite(norm):
            self.optimizer.zero_grad()
            raise RunError(
                f"step {step}: the gradient's norm is {norm} though the loss is finite; lower learning_rate, "
                "or train with dtype: fp32"
            )
        if norm == 0.0 and step == 1:
            raise RunError(
                "step 1: every gradient is exactly zero, so nothing would be learned; check that the adapter "
                "is active and that its initial values are not all zero"
            )
        return norm


def _result(batches: Sequence[Batch], nll: float, grad_norm: float, taken: bool = True) -> StepResult:
    supervised = sum(batch.supervised for batch in batches)
    return StepResult(nll, supervised, sum(_tokens(batch) for batch in batches), grad_norm, taken)


def _tokens(batch: Batch) -> int:
    return batch.input_ids.numel() if batch.attention_mask is None else int(batch.attention_mask.sum())
