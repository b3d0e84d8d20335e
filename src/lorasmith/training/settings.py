"""What a training run is told, checked before anything is loaded."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lorasmith.errors import RecipeError, nearest
from lorasmith.models.compiled_layers import Compile
from lorasmith.ops.token_loss.schema import Objective

Schedule = Literal["linear", "cosine", "constant"]
Precision = Literal["auto", "bf16", "fp16", "fp32"]

_COUNTS = (
    "max_steps",
    "batch_size",
    "accumulation",
    "keep_checkpoints",
    "log_every",
    "evaluate_every",
    "save_every",
    "patience",
)


@dataclass(frozen=True)
class TrainingSettings:
    """Length, optimizer, precision and cadence of a run.

    One step is accumulation micro-batches of batch_size examples (or packs). Exactly one of max_steps and epochs
    ends the run; with neither given it is one epoch. warmup is a number of steps, or below 1 a fraction of them.
    loraplus_lr_ratio multiplies the learning rate of LoRA's B (LoRA+, arXiv 2402.12354).
    step_in_backward moves each parameter as soon as its gradient is there, and frees it; without accumulation and clip.
    weight_decay falls on matrices only. label_smoothing (from 0 to below 1) and z_loss (the weight of squared
    log-normalisers) change the loss that is trained and logged, never an evaluation. evaluate_every, save_every and
    log_every count steps; None is only at the end, where the run is evaluated and saved in any case. patience is how
    many evaluations in a row may pass without a better best_metric before the run stops; None never stops.
    compile runs the model's layers as compiled graphs; auto does nowhere yet (models/compiled_layers.py).
    Raises RecipeError, naming the field, for a value out of range.
    """

    max_steps: int | None = None
    epochs: float | None = None
    batch_size: int = 8
    accumulation: int = 1
    learning_rate: float = 2e-4
    schedule: Schedule = "linear"
    warmup: float = 0.03
    optimizer: str = "adamw"
    loraplus_lr_ratio: float = 1.0
    clip: float | None = 1.0
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    dtype: Precision = "auto"
    gradient_checkpointing: bool = False
    offload_checkpoints: bool = False
    return_freed_memory: bool = False
    step_in_backward: bool = False
    compile: Compile = "auto"
    evaluate_every: int | None = None
    save_every: int | None = 200
    log_every: int = 1
    patience: int | None = None
    best_metric: str = "eval_loss"
    higher_is_better: bool = False
    keep_checkpoints: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_steps is not None and self.epochs is not None:
            raise RecipeError(
                f"training has both max_steps={self.max_steps} and epochs={self.epochs}; keep one of them"
            )
        for name in _COUNTS:
            self._require(name, lambda value: value is None or value >= 1, "at least 1")
        for name in ("weight_decay", "warmup", "z_loss"):
            self._require(name, lambda value: value >= 0, "at least 0")
        for name in ("epochs", "learning_rate", "loraplus_lr_ratio", "eps"):
            self._require(name, lambda value: value is None or 0 < value < math.inf, "above 0")
        self._require("label_smoothing", lambda value: 0 <= value < 1, "from 0 to below 1")
        self._require("clip", lambda value: value is None or value > 0, "above 0, or null for no clipping")
        self._require("betas", lambda value: all(0 <= beta < 1 for beta in value), "from 0 to below 1")
        self._require_choice("schedule", get_args(Schedule))
        self._require_choice("dtype", get_args(Precision))
        if self.offload_checkpoints and not self.gradient_checkpointing:
            raise RecipeError(
                "training.offload_checkpoints=true moves what gradient checkpointing keeps; set gradient_checkpointing "
                "as well"
            )
        self._require_whole_gradients()
        self._require("compile", lambda value: value in ("auto", True, False), "true, false or auto")
        if self.offload_checkpoints and self.compile is True:
            raise RecipeError(
                "training.compile=true makes a layer's checkpoint inside its graph, where training.offload_checkpoints "
                "does not see it; set one of them to false"
            )
        if self.patience and not self.evaluate_every:
            raise RecipeError(f"training.patience={self.patience} needs evaluations; set evaluate_every as well")

    @property
    def objective(self) -> Objective:
        """The loss of a target."""
        return Objective(self.label_smoothing, self.z_loss)

    def total_steps(self, epoch_batches: int) -> int:
        """Optimizer steps of the whole run, for an epoch of epoch_batches micro-batches."""
        if self.max_steps is not None:
            return self.max_steps
        return max(1, _whole((self.epochs or 1.0) * epoch_batches / self.accumulation))

    def warmup_steps(self, total_steps: int) -> int:
        """Steps over which the learning rate rises."""
        return _whole(self.warmup * total_steps) if self.warmup < 1 else int(self.warmup)

    def is_better(self, value: float, best: float | None) -> bool:
        """Whether value of best_metric beats best; NaN beats nothing."""
        if math.isnan(value):
            return False
        return best is None or (value > best if self.higher_is_better else value < best)

    def _require_whole_gradients(self) -> None:
        """What needs all gradients at once, and the step in the backward pass, exclude each other."""
        if self.step_in_backward and self.accumulation > 1:
            raise RecipeError(
                f"training.step_in_backward=true frees each gradient at once, so accumulation={self.accumulation} has "
                "nothing to add to; set training.accumulation: 1 and a larger batch_size, or step_in_backward: false"
            )
        if self.step_in_backward and self.clip is not None:
            raise RecipeError(
                f"training.step_in_backward=true moves parameters before the norm that clip={self.clip} limits is "
                "known; set training.clip: null, or step_in_backward: false"
            )

    def _require(self, name: str, holds: Callable[[Any], bool], rule: str) -> None:
        value = getattr(self, name)
        if not holds(value):
            raise RecipeError(f"training.{name}={value} must be {rule}")

    def _require_choice(self, name: str, choices: tuple[str, ...]) -> None:
        value = getattr(self, name)
        if value not in choices:
            raise RecipeError(
                f"training.{name}={value!r} must be one of {', '.join(choices)}.{nearest(value, choices)}"
            )


def _whole(steps: float) -> int:
    """steps rounded up, but for what the product of a decimal fraction is too large by: 0.035 x 200 is 7."""
    return math.ceil(round(steps, 6))
