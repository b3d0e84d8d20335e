"""The training loop. It knows no dataset, evaluator or command line: what it needs is passed in."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import torch
from torch import nn

from lorasmith.attach import adapters_of
from lorasmith.data.batch import Batch
from lorasmith.errors import RecipeError, RunError
from lorasmith.models.activation_checkpointing import recomputing
from lorasmith.models.compiled_layers import compiled_layers, pays
from lorasmith.models.modes import kept_modes
from lorasmith.ops.allocation import keep_freed_blocks, return_freed_blocks
from lorasmith.training import checkpoint, random_state
from lorasmith.training.loggers.jsonl import JsonLines
from lorasmith.training.loggers.logger import Logger
from lorasmith.training.loss import Loss, base_model, loss_for
from lorasmith.training.memory import measure
from lorasmith.training.optimizers import build, choice_of, factor_pairs, frozen_inputs
from lorasmith.training.position import Interval, Position
from lorasmith.training.precision import autocast_dtype, loss_scale
from lorasmith.training.run_folder import RunFolder
from lorasmith.training.schedule import factor
from lorasmith.training.settings import TrainingSettings
from lorasmith.training.step import StepResult, TrainingStep
from lorasmith.training.step_in_backward import require_whole_step

logger = logging.getLogger(__name__)

Evaluate = Callable[[], Mapping[str, float]]
StopReason = Literal["finished", "patience"]


class BatchStream(Protocol):
    """Endless micro-batches whose position can be saved; the position counts what has been handed out."""

    def __iter__(self) -> Iterator[Batch]: ...

    def epoch_batches(self) -> int:
        """Micro-batches of one pass over the data."""

    def state_dict(self) -> Mapping[str, Any]:
        """The position, in what JSON can hold."""

    def load_state_dict(self, state: Any) -> None:
        """Go to a position."""


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended; best and best_step are None without evaluation. loss is the last step's."""

    steps: int
    loss: float
    best_metric: float | None
    best_step: int | None
    stopped_because: StopReason


def run(
    model: nn.Module,
    loader: BatchStream,
    settings: TrainingSettings,
    folder: RunFolder,
    *,
    loss: Loss | None = None,
    evaluate: Evaluate | None = None,
    loggers: Sequence[Logger] = (),
    resume: bool = False,
) -> TrainingResult:
    """Train what requires a gradient in model, in place, and leave it with the best evaluated weights (else the last).

    Its modules are in training mode meanwhile, and afterwards in the modes that they had.
    loss is by default that of a causal language model. evaluate is called in evaluation mode, and its numbers are
    logged with the prefix eval_. metrics.jsonl is always written. With resume the newest whole checkpoint is
    continued: on the same machine with the same thread count every later number is bit-equal to an uninterrupted run.
    The global random generators are seeded, or restored. On a CPU the process keeps freed memory from here on, or
    returns it at once (settings.return_freed_memory).
    Raises RunError where a step cannot be taken (earlier checkpoints stay), RecipeError for a used folder, ModelError
    where settings.compile asks for a graph that cannot be made of the model.
    """
    if not resume:
        folder.refuse_used()
    parameters = checkpoint.trainable_parameters(model)
    if not parameters:
        raise RunError("the model has no parameter that requires a gradient; attach an adapter before training")
    if next(iter(parameters.values())).device.type == "cpu":
        (return_freed_blocks if settings.return_freed_memory else keep_freed_blocks)()
    random_state.seed_all(settings.seed)
    optimizer = build(parameters, settings, factor_pairs(model, parameters))
    loss = loss or loss_for(model, "causal", settings.objective)
    dtype, total = autocast_dtype(model, settings.dtype), settings.total_steps(loader.epoch_batches())
    parts = adapters_of(base_model(model)).training_parts()
    for part in parts.values():
        part.check(total)
    if settings.step_in_backward:
        require_whole_step(dtype, parts)
    scale, in_backward = loss_scale(dtype), settings.step_in_backward
    step = TrainingStep(parameters, optimizer, loss, settings.clip, dtype, parts, total, scale, in_backward)
    loop = Loop(model, loader, settings, folder, step, evaluate, [JsonLines(folder.metrics), *loggers])
    if resume:
        loop.resume()
    frozen = frozen_inputs(model, choice_of(settings).freezes_inputs)
    checkpointed = recomputing(
        base_model(model), checkpointing=settings.gradient_checkpointing, offload=settings.offload_checkpoints
    )
    device = next(iter(parameters.values())).device
    compiled = compiled_layers(base_model(model)) if pays(settings.compile, device) else nullcontext()
    with kept_modes(model), frozen, checkpointed, compiled:
        return loop.run()


@dataclass
class Loop:
    """One run's state, and what is due before and after each of its steps."""

    model: nn.Module
    loader: BatchStream
    settings: TrainingSettings
    folder: RunFolder
    step: TrainingStep
    evaluate: Evaluate | None
    loggers: Sequence[Logger]
    position: Position = field(default_factory=Position)

    def __post_init__(self) -> None:
        self.total = self.settings.total_steps(self.loader.epoch_batches())
        self.warmup = self.settings.warmup_steps(self.total)
        self.device = next(iter(self.step.parameters.values())).device
        self.position.loss_scale = self.step.scale

    def resume(self) -> None:
        """Go to the newest whole checkpoint, or stay at the start where there is none."""
        checkpoint.sweep(self.folder.checkpoints)
        found = checkpoint.latest(self.folder.checkpoints)
        if found is None:
            logger.warning("%s has no whole checkpoint; the run starts from its beginning", self.folder.path)
        else:
            self.position, loader_state = checkpoint.restore(found, self.step.parameters, self.step.optimizer)
            self._take_scale()
            checkpoint.load_parts_(found, self.step.parts)
            self.loader.load_state_dict(loader_state)
        checkpoint.remove_after(self.folder.checkpoints, self.position.step)

    def _take_scale(self) -> None:
        """Let the step go on with the loss scale that the position was restored with; a fresh one where it has none."""
        own = self.position.loss_scale if self.step.scale is not None else None
        self.step = replace(self.step, scale=own or self.step.scale)
        self.position.loss_scale = self.step.scale

    def run(self) -> TrainingResult:
        """Steps until the run is over; then the best weights."""
        self.model.train()
        with self.logging():
            stream = iter(self.loader)
            while self.stop_reason() is None:
                self._advance(stream)
        return self.result()

    @contextmanager
    def logging(self) -> Iterator[None]:
        """Loggers are open while the block runs."""
        try:
            for each in self.loggers:
                each.start(self.position.step, self.total)
            yield
        finally:
            for each in self.loggers:
                each.close()

    def result(self) -> TrainingResult:
        """How the run ended, with the best weights in place."""
        self._take_best()
        reason = self.stop_reason()
        assert reason is not None
        best = (self.position.best, self.position.best_step)
        # in float16 a short run may overflow in every step
        loss = math.nan if self.position.loss is None else self.position.loss
        return TrainingResult(self.position.step, loss, *best, reason)

    def stop_reason(self) -> StopReason | None:
        """Why the run is over, or None while it is not."""
        if self.position.step >= self.total:
            return "finished"
        patience = self.settings.patience
        return "patience" if patience is not None and self.position.poor_evaluations >= patience else None

    def learning_rate(self) -> float:
        """That of the next step."""
        done, schedule = self.position.step, self.settings.schedule
        return self.settings.learning_rate * factor(done, schedule, self.warmup, self.total)

    def batches(self, stream: Iterator[Batch]) -> list[Batch]:
        """The micro-batches of the next step."""
        return [next(stream).to(self.device) for _ in range(self.settings.accumulation)]

    def _advance(self, stream: Iterator[Batch]) -> None:
        began, learning_rate = time.perf_counter(), self.learning_rate()
        with self.told_of_errors():
            result = self.step(self.position.step + 1, self.batches(stream), learning_rate)
        self.follow(result, learning_rate, time.perf_counter() - began)

    @contextmanager
    def told_of_errors(self) -> Iterator[None]:
        """A RunError inside the block also says which checkpoint is the last good one."""
        try:
            yield
        except RunError as error:
            raise type(error)(f"{error}. {self._last_good()}") from error

    def follow(self, result: StepResult, learning_rate: float, seconds: float) -> None:
        """What is due after a step. The order matters: a checkpoint at step n follows all lines of step n."""
        self._count(result, seconds)
        last = self.position.step >= self.total
        if self._due(self.settings.log_every) or last:
            self._log_interval(result, learning_rate)
        improved = (self._due(self.settings.evaluate_every) or last) and self._evaluate()
        if self._due(self.settings.save_every) or improved or self.stop_reason() is not None:
            self._save()

    def _due(self, every: int | None) -> bool:
        return every is not None and self.position.step % every == 0

    def _count(self, result: StepResult, seconds: float) -> None:
        position = self.position
        position.step += 1
        if math.isfinite(result.loss):
            position.loss = result.loss
            position.interval.nll += result.nll
            position.interval.supervised += result.supervised
        position.interval.tokens += result.tokens
        position.interval.seconds += seconds

    def _log_interval(self, result: StepResult, learning_rate: float) -> None:
        interval, memory = self.position.interval, measure(self.device)
        self.position.interval = Interval()
        # numbers that are not finite are no JSON: float16's overflows have no loss and no norm
        norm = {"grad_norm": result.grad_norm} if math.isfinite(result.grad_norm) else {}
        self._log(
            {
                **({"loss": interval.nll / interval.supervised} if interval.supervised else {}),
                "lr": learning_rate,
                **norm,
                "tokens_per_second": interval.tokens / interval.seconds,
                "supervised_tokens": interval.supervised,
                "memory_bytes": memory.now,
                **memory.peaks(),
                **self._scale_values(),
            }
        )

    def _scale_values(self) -> dict[str, float]:
        scale = self.step.scale
        return {} if scale is None else {"loss_scale": scale.factor, "skipped_steps": scale.skipped}

    def _log(self, values: Mapping[str, float]) -> None:
        for each in self.loggers:
            each.log(self.position.step, values)

    def _evaluate(self) -> bool:
        """Evaluate and log; True where the best metric is better than ever."""
        if self.evaluate is None:
            return False
        self.model.eval()
        with torch.no_grad(), self.step.precision():
            values = {_evaluation_name(name): float(value) for name, value in self.evaluate().items()}
        self.model.train()
        self._log(values)
        name = self.settings.best_metric
        if name not in values:
            raise RecipeError(
                f"training.best_metric={name!r} is not evaluated; choose one of {', '.join(sorted(values))}"
            )
        if not self.settings.is_better(values[name], self.position.best):
            self.position.poor_evaluations += 1
            return False
        self.position.best, self.position.best_step = values[name], self.position.step
        self.position.poor_evaluations = 0
        return True

    def _save(self) -> None:
        folder, step = self.folder.checkpoints, self.step
        state = self.loader.state_dict()
        checkpoint.save(folder, step.parameters, step.optimizer, self.position, state, step.parts)
        checkpoint.prune(folder, self.settings.keep_checkpoints, self.position.best_step)

    def _take_best(self) -> None:
        if self.position.best_step in (None, self.position.step):
            return
        best = checkpoint.at_step(self.folder.checkpoints, self.position.best_step)
        if best is None:
            raise RunError(
                f"the best checkpoint, of step {self.position.best_step}, is gone or damaged in "
                f"{self.folder.checkpoints}; the last one is whole"
            )
        checkpoint.load_trainable_(best, self.step.parameters)
        checkpoint.load_parts_(best, self.step.parts)

    def _last_good(self) -> str:
        found = checkpoint.latest(self.folder.checkpoints)
        return "No checkpoint had been written yet" if found is None else f"The last good checkpoint is {found.path}"


def _evaluation_name(name: str) -> str:
    return name if name.startswith("eval_") else f"eval_{name}"
