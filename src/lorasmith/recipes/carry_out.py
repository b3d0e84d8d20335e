"""A run on a model that is loaded and adapted: score, train, score again, save, report."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorasmith.atomic import write_text
from lorasmith.attach import adapters_of, class_names, content_of, name_classes_, save_adapter, write_card
from lorasmith.data import Loader
from lorasmith.evaluation import Scores, compare
from lorasmith.models.fused_block import fused_blocks
from lorasmith.planning import MemoryPlan
from lorasmith.quantized import count_parameters, stored_bytes
from lorasmith.recipes.adapter_home import adapter_home, home_of
from lorasmith.recipes.card_facts import card_facts
from lorasmith.recipes.data_start import begin_by_data_, needs_data
from lorasmith.recipes.dataset import Dataset
from lorasmith.recipes.generation import stop_after_answers_
from lorasmith.recipes.outcome import Outcome, Summary
from lorasmith.recipes.positions import context_of
from lorasmith.recipes.reading import write_recipe
from lorasmith.recipes.recipe import Recipe
from lorasmith.recipes.samples import Prompt, choose_prompts, generate_samples
from lorasmith.recipes.scoring import Scorer, numbers
from lorasmith.recipes.streams import Layout, layout_of, own_attention, scoring_loader, training_loader
from lorasmith.report import render_report
from lorasmith.training import (
    Logger,
    LoggerContext,
    RunFolder,
    TrainingResult,
    TrainingSettings,
    loggers,
    loss_for,
    run,
)
from lorasmith.training.loop import Evaluate
from lorasmith.training.memory import measure
from lorasmith.training.precision import autocast_dtype, computing

Echo = Callable[[str], None]


@dataclass(frozen=True)
class Work:
    """All that a run needs once the model stands. adapter is the name of the one that trains; new: the job made it."""

    recipe: Recipe
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    dataset: Dataset
    folder: RunFolder
    loggers: list[Logger]
    adapter: str = "default"
    new: bool = True


@dataclass(frozen=True)
class FinishedRun:
    """The folder of a finished run, scores before and after ({metric: {value, low, high, n}}), and how it ended."""

    folder: Path
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    training: TrainingResult

    @property
    def adapter(self) -> Path:
        """The folder of the trained adapter."""
        return adapter_home(RunFolder(self.folder))


def make_loggers(folder: RunFolder, recipe: Recipe) -> list[Logger]:
    """The display and what the recipe asks for; raises RecipeError where the package of one is not installed."""
    context = LoggerContext(folder, recipe.model_dump(mode="json"))
    return [loggers[name](context) for name in ["progress", *recipe.loggers]]


def begin(folder: RunFolder, recipe: Recipe, plan: MemoryPlan | None, *, resume: bool = False) -> None:
    """Writes down what was decided and predicted, before the work; with resume what stands there stays."""
    if resume and folder.recipe.is_file():
        return
    write_recipe(recipe, folder.recipe)
    if plan is not None:
        write_text(folder.plan, plan.to_json())


def carry_out(work: Work, echo: Echo, *, resume: bool = False) -> FinishedRun:
    """Scores, trains, scores again, and fills the run folder; the model keeps its best weights and its own modules.

    Scores are taken in the precision of training. With resume those from before it are the first time's.
    Raises RunError where training fails; checkpoints stay.
    """
    with own_attention(work.model), fused_blocks(work.model):
        opened = open_run(work, echo, resume=resume)
        return close_run(opened, _train(opened, resume), echo)


@dataclass(frozen=True)
class OpenRun:
    """A run that is scored and about to train; before is None where it had been scored in an earlier process."""

    work: Work
    layout: Layout
    score: Scorer | None
    prompts: list[Prompt]
    before: Scores | None
    outcome: Outcome
    began: float

    @property
    def loader(self) -> Loader:
        """The endless stream of micro-batches to train on."""
        return training_loader(self.work.dataset.train, self.layout, self.work.recipe, self.work.tokenizer)

    @property
    def settings(self) -> TrainingSettings:
        """What training is told."""
        return self.work.recipe.training.settings(self.work.recipe.seed)

    @property
    def evaluate(self) -> Evaluate | None:
        """The scores of the model as it stands."""
        score = self.score
        return None if score is None else lambda: numbers(score())


def open_run(work: Work, echo: Echo, *, resume: bool) -> OpenRun:
    """What comes before training: scores and samples of the model as it is, written down."""
    began = time.perf_counter()
    _fit_model_(work)
    layout = layout_of(work.model, work.recipe)
    if layout.note:
        echo(f"note: {layout.note}")
    if needs_data(work.model, work.adapter, new=work.new):
        batches = iter(training_loader(work.dataset.train, layout, work.recipe, work.tokenizer))
        echo(begin_by_data_(work.model, work.adapter, batches, work.recipe, work.folder, resume=resume))
    score = _scorer(work, layout)
    prompts = _prompts(work)
    outcome = Outcome.read(work.folder.evaluation) if resume else None
    before = None
    if outcome is None:
        before = _scored(work, score) if score else None
        outcome = _begun(work, before, prompts)
        outcome.write(work.folder.evaluation)
    return OpenRun(work, layout, score, prompts, before, outcome, began)


def close_run(run: OpenRun, result: TrainingResult, echo: Echo) -> FinishedRun:
    """What comes after training: the adapter, scores and samples with it, summary and report."""
    work, outcome, score = run.work, run.outcome, run.score
    _fit_model_(work)
    _save(work)
    _complete(outcome, work, run.before, _last_scores(work, score, result) if score else None)
    for sample, text in zip(outcome.samples, _generations(work, run.prompts)):
        sample["after"] = text
    outcome.write(work.folder.evaluation)
    _write_page(work, outcome, result)
    _summary(work, result, time.perf_counter() - run.began).write(work.folder.path)
    render_report(work.folder.path)
    for line in outcome.lines():
        echo(line)
    return FinishedRun(work.folder.path, outcome.before, outcome.after, result)


def _fit_model_(work: Work) -> None:
    """Let the model know where answers end, or what its classes are called."""
    if work.recipe.task == "causal":
        stop_after_answers_(work.model, work.dataset.answer_ends)
    else:
        _name_classes(work)


def _name_classes(work: Work) -> None:
    names = work.dataset.label_names
    # labels that are numbers name nothing, and a model in memory may have classes that these data lack
    if len(names) == len(class_names(work.model)) and not all(name.isdigit() for name in names):
        name_classes_(work.model, names)


def _scorer(work: Work, layout: Layout) -> Scorer | None:
    if not work.dataset.validation:
        return None
    recipe = work.recipe
    loader = scoring_loader(work.dataset.validation, layout, recipe.training.batch_size, work.tokenizer)
    return Scorer(work.model, loader, recipe.task, recipe.evaluation.max_batches)


def _scored(work: Work, score: Scorer) -> Scores:
    dtype = autocast_dtype(work.model, work.recipe.training.dtype)
    with computing(next(work.model.parameters()), dtype):
        return score()


def _last_scores(work: Work, score: Scorer, result: TrainingResult) -> Scores:
    """Scores of the weights that training left; those of its last evaluation where these are the same weights."""
    same = result.best_step in (None, result.steps)
    return score.latest if same and score.latest is not None else _scored(work, score)


def _prompts(work: Work) -> list[Prompt]:
    if work.recipe.task != "causal":
        return []
    return choose_prompts(work.recipe.evaluation, work.dataset.validation or work.dataset.train, work.tokenizer)


def _begun(work: Work, before: Scores | None, prompts: list[Prompt]) -> Outcome:
    texts = _generations(work, prompts)
    samples: list[dict[str, str | None]] = [
        {"prompt": prompt.text, "expected": prompt.expected, "before": text, "after": None}
        for prompt, text in zip(prompts, texts)
    ]
    return Outcome(before.to_dict(work.dataset.label_names) if before is not None else None, samples=samples)


def _complete(outcome: Outcome, work: Work, before: Scores | None, after: Scores | None) -> None:
    if after is None:
        return
    outcome.after = after.to_dict(work.dataset.label_names)
    if before is not None:
        outcome.change = {name: estimate.to_dict() for name, estimate in compare(before, after).items()}


def _generations(work: Work, prompts: list[Prompt]) -> list[str]:
    section, context = work.recipe.evaluation, context_of(work.model)
    return generate_samples(work.model, work.tokenizer, prompts, section, context)


def _train(opened: OpenRun, resume: bool) -> TrainingResult:
    work, settings = opened.work, opened.settings
    return run(
        work.model,
        opened.loader,
        settings,
        work.folder,
        loss=loss_for(work.model, work.recipe.task, settings.objective),
        evaluate=opened.evaluate,
        loggers=work.loggers,
        resume=resume,
    )


def _save(work: Work) -> None:
    save_adapter(work.model, work.folder.adapter, work.adapter)
    home = home_of(work.folder, work.adapter)
    work.tokenizer.save_pretrained(home)
    if work.recipe.task == "causal":
        # where answers end was learned from the data, and generation must know it
        work.model.generation_config.save_pretrained(home)


def _write_page(work: Work, outcome: Outcome, result: TrainingResult) -> None:
    facts = card_facts(work.recipe, work.dataset, outcome, result)
    content = content_of(adapters_of(work.model), work.adapter)
    write_card(home_of(work.folder, work.adapter), content, facts, work.folder.path.name)


def _summary(work: Work, result: TrainingResult, seconds: float) -> Summary:
    count, memory = count_parameters(work.model), measure(work.model.device)
    return Summary(
        model=work.recipe.model.path,
        method=work.recipe.method["name"],
        trainable_parameters=count.trainable,
        total_parameters=count.total,
        model_bytes=stored_bytes(work.model),
        adapter_bytes=sum(file.stat().st_size for file in home_of(work.folder, work.adapter).glob("*.safetensors")),
        steps=result.steps,
        loss=result.loss,
        best_metric=result.best_metric,
        best_step=result.best_step,
        stopped_because=result.stopped_because,
        seconds=seconds,
        peak_memory_bytes=memory.peak,
        peak_reserved_bytes=memory.reserved,
    )
