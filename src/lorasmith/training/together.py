"""Training several adapters at once on one frozen base: one batch of all their rows a step.

The base's products, above all the unpacking of quantized weights, are shared; everything else is each adapter's own:
data, learning rate and its schedule, clipping, the weight of a target in its loss, optimizer state, evaluation,
checkpoints, and the number of its steps. What a run leaves is what the adapter's run alone leaves, but for the order of
f32 sums, and for which elements dropout hits.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from torch import nn

from lorasmith.attach import adapters_of
from lorasmith.data.batch import Batch
from lorasmith.errors import RecipeError, RunError
from lorasmith.models.activation_checkpointing import recomputing
from lorasmith.models.modes import kept_modes
from lorasmith.ops.allocation import keep_freed_blocks, return_freed_blocks
from lorasmith.training import checkpoint, random_state
from lorasmith.training.loggers.jsonl import JsonLines
from lorasmith.training.loggers.logger import Logger
from lorasmith.training.loop import BatchStream, Evaluate, Loop, TrainingResult
from lorasmith.training.loss import Task, base_model
from lorasmith.training.optimizers import build, choice_of, factor_pairs
from lorasmith.training.precision import autocast_dtype, loss_scale
from lorasmith.training.run_folder import RunFolder
from lorasmith.training.settings import TrainingSettings
from lorasmith.training.shared_loss import Share, SharedLoss, names
from lorasmith.training.step import TrainingStep

# settings of what the adapters share
_SHARED = ("dtype", "gradient_checkpointing", "offload_checkpoints", "return_freed_memory")


@dataclass(frozen=True)
class Job:
    """One adapter's run: its name in the model, its batches, what it is told, and where it is kept.

    evaluate and loggers are those of training.run.
    """

    adapter: str
    loader: BatchStream
    settings: TrainingSettings
    folder: RunFolder
    evaluate: Evaluate | None = None
    loggers: Sequence[Logger] = ()


def train_together(
    model: nn.Module, jobs: Sequence[Job], *, task: Task = "causal", resume: bool = False
) -> dict[str, TrainingResult]:
    """Train the adapters of jobs, which model has already, in place; returns how each ended, by its name.

    Each job ends by its own settings; the others go on. The jobs' batches must be all padded or all packed. With resume
    each continues from the newest whole checkpoint of its own. The random generators are seeded by the first job.
    Afterwards the adapters that were active before are active, and modules are in the modes that they had.
    Raises RecipeError for jobs that do not fit together or a used folder, AttachError for adapters that have no rows of
    their own, RunError, naming the adapter, where a step cannot be taken.
    """
    model = base_model(model)
    book = adapters_of(model)
    adapters = [job.adapter for job in jobs]
    _check(jobs)
    with book.by_rows(adapters):
        pass
    if not resume:
        for job in jobs:
            job.folder.refuse_used()
    before = list(book.active)
    try:
        book.activate(adapters, trainable=True)
        settings = jobs[0].settings
        if next(model.parameters()).device.type == "cpu":
            (return_freed_blocks if settings.return_freed_memory else keep_freed_blocks)()
        random_state.seed_all(settings.seed)
        loss = SharedLoss(book, task)
        together = _Together(model, [(job, _loop(job, loss)) for job in jobs], loss)
        if resume:
            for _, loop in together.runs:
                loop.resume()
        checkpointed = recomputing(
            model, checkpointing=settings.gradient_checkpointing, offload=settings.offload_checkpoints
        )
        with kept_modes(model), checkpointed:
            return together.run()
    finally:
        book.activate(before or adapters)


def _check(jobs: Sequence[Job]) -> None:
    adapters = [job.adapter for job in jobs]
    if any(job.settings.compile is True for job in jobs):
        raise RecipeError(
            "training.compile=true: which rows an adapter has is read from the batch, which a graph cannot; "
            "set it to false where adapters train at once"
        )
    if not jobs or len(set(adapters)) < len(adapters):
        raise RecipeError(f"jobs for the adapters {adapters}: give at least one, and one for each adapter")
    folders = [job.folder.path for job in jobs]
    if len(set(folders)) < len(folders):
        raise RecipeError(f"jobs in the folders {[str(path) for path in folders]}: give each adapter one of its own")
    for job in jobs:
        if job.settings.step_in_backward:
            raise RecipeError(
                f"training.step_in_backward=true of adapter {job.adapter!r} is for one adapter that trains alone; set "
                "it to false"
            )
    for name in _SHARED:
        values = {job.adapter: getattr(job.settings, name) for job in jobs}
        if len(set(values.values())) > 1:
            raise RecipeError(
                f"training.{name} differs between the adapters ({values}), which share one pass; make it one"
            )


def _loop(job: Job, loss: SharedLoss) -> Loop:
    model, book = loss.model, loss.book
    own = {id(parameter) for parameter in book.parameters(job.adapter)}
    parameters = {name: p for name, p in checkpoint.trainable_parameters(model).items() if id(p) in own}
    evaluate = job.evaluate

    def evaluated() -> dict[str, float]:
        assert evaluate is not None
        with book.by_rows([job.adapter]):
            return dict(evaluate())

    settings, dtype = job.settings, autocast_dtype(model, job.settings.dtype)
    own_loss = loss.alone(job.adapter, settings.objective)
    parts = {name: part for name, part in book.training_parts().items() if name == job.adapter}
    total = settings.total_steps(job.loader.epoch_batches())
    pairs = factor_pairs(model, parameters)
    optimizer = build(parameters, settings, pairs)
    if choice_of(settings).freezes_inputs:
        # activated anew when all have ended, all train again
        for pair in pairs.values():
            pair.a.requires_grad_(False)
    step = TrainingStep(parameters, optimizer, own_loss, settings.clip, dtype, parts, total, loss_scale(dtype))
    loggers = [JsonLines(job.folder.metrics), *job.loggers]
    return Loop(model, job.loader, settings, job.folder, step, None if evaluate is None else evaluated, loggers)


@dataclass
class _Together:
    """Runs that take their steps at once."""

    model: nn.Module
    runs: list[tuple[Job, Loop]]
    loss: SharedLoss

    def run(self) -> dict[str, TrainingResult]:
        """Steps until every run is over."""
        self.model.train()
        with ExitStack() as stack:
            for _, loop in self.runs:
                stack.enter_context(loop.logging())
            streams = {job.adapter: iter(job.loader) for job, _ in self.runs}
            while going := [(job, loop) for job, loop in self.runs if loop.stop_reason() is None]:
                self._advance(going, streams)
        return {job.adapter: loop.result() for job, loop in self.runs}

    def _advance(self, going: Sequence[tuple[Job, Loop]], streams: dict[str, Iterator[Batch]]) -> None:
        """A step of every run that is going on."""
        began = time.perf_counter()
        steps = []
        for job, loop in going:
            with _named(job), loop.told_of_errors():
                batches = loop.batches(streams[job.adapter])
                steps.append(_Step(job, loop, batches, loop.step.begin(loop.position.step + 1, batches)))
        for turn in range(max(len(step.batches) for step in steps)):
            self._backward([step for step in steps if step.learns(turn)], turn)
        rates = [step.loop.learning_rate() for step in steps]
        results = []
        for step, rate in zip(steps, rates, strict=True):
            with _named(step.job), step.loop.told_of_errors():
                number = step.loop.position.step + 1
                results.append(step.loop.step.finish(number, step.batches, step.nll, rate))
        seconds = time.perf_counter() - began
        for step, result, rate in zip(steps, results, rates, strict=True):
            step.loop.follow(result, rate, seconds)

    def _backward(self, steps: Sequence["_Step"], turn: int) -> None:
        """Forward and backward of micro-batch number turn of all steps that have one."""
        if not steps:
            return
        shares = [Share(step.job.adapter, step.batches[turn], step.job.settings.objective) for step in steps]
        rows, per_token = names(shares)
        with self.loss.book.by_rows(rows, per_token=per_token):
            with steps[0].loop.step.precision():
                losses = self.loss(shares)
            for step, nll in zip(steps, losses, strict=True):
                with _named(step.job), step.loop.told_of_errors():
                    step.nll += step.loop.step.checked(step.loop.position.step + 1, nll)
            pairs = zip(steps, losses, strict=True)
            sum(step.loop.step.scaled(nll / step.supervised) for step, nll in pairs).backward()  # type: ignore[union-attr]


@dataclass
class _Step:
    """One run's part of a step: its micro-batches, how many targets they have, and the sum of their losses so far."""

    job: Job
    loop: Loop
    batches: list[Batch]
    supervised: int
    nll: float = 0.0

    def learns(self, turn: int) -> bool:
        """Whether micro-batch number turn is there and has a target."""
        return turn < len(self.batches) and self.batches[turn].supervised > 0


@contextmanager
def _named(job: Job) -> Iterator[None]:
    """A RunError inside the block names the adapter."""
    try:
        yield
    except RunError as error:
        raise type(error)(f"adapter {job.adapter!r}: {error}") from error
