"""Scoring a model with and without its adapters."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from lorasmith.attach import adapters_of
from lorasmith.data import Example
from lorasmith.errors import DataError, InputError
from lorasmith.evaluation import Scores
from lorasmith.models.checkpoint import Checkpoint
from lorasmith.recipes.base_model import Storage, open_base
from lorasmith.recipes.dataset import build_dataset, encode_settings, encode_sources
from lorasmith.recipes.positions import positions_in
from lorasmith.recipes.scoring import Scorer
from lorasmith.recipes.sections import DataSection, DataSource, Task
from lorasmith.recipes.streams import Layout, scoring_loader
from lorasmith.recipes.subject import (
    BASE,
    LoadedSubject,
    Subject,
    find_subject,
    load_subject,
    tokenizer_of,
    with_quantization,
)


@dataclass(frozen=True)
class EvaluationRequest:
    """What to score: a run, adapter or base, with further adapters, on data (None: the run's validation examples).

    Raises InputError for a batch without examples.
    """

    subject: str
    adapters: tuple[str, ...] = ()
    data: str | None = None
    task: Task | None = None
    quantization: str | None = None
    max_length: int | None = None
    batch_size: int = 8
    device: str = "auto"
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"batch_size={self.batch_size} must be at least 1: the examples of a batch")


def evaluate(request: EvaluationRequest) -> dict[str, Scores]:
    """Scores by voice: "base" for the bare model, then each adapter by its name.

    Raises InputError for what is wrong with the subject or the data, before weights are read.
    """
    found = find_subject(request.subject, request.adapters, trust_remote_code=request.trust_remote_code)
    subject = with_quantization(found, request.quantization)
    if request.task is not None and request.task != subject.storage.task:
        storage = Storage(request.task, subject.storage.quantization, subject.storage.labels)
        subject = Subject(subject.base, storage, subject.adapters, subject.recipe)
    checkpoint = open_base(subject.base)
    tokenizer = tokenizer_of(subject, checkpoint)
    examples, labels = _examples(request, subject, checkpoint, tokenizer)
    if labels:
        storage = Storage(subject.storage.task, subject.storage.quantization, labels)
        subject = Subject(subject.base, storage, subject.adapters, subject.recipe)
    loaded = load_subject(subject, request.device)
    return _scores(loaded, subject, examples, request.batch_size)


def evaluation_lines(request: EvaluationRequest) -> Iterator[str]:
    """A line a voice and metric: value, 95 % interval, and how much it was taken over."""
    for voice, scores in evaluate(request).items():
        for name, estimate in scores.items():
            yield f"{voice}: {name} {estimate}"


def _examples(
    request: EvaluationRequest, subject: Subject, checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[Example], tuple[str, ...]]:
    """Examples to score and the names of their classes."""
    task = subject.storage.task
    section = _data_section(request, subject, checkpoint)
    if request.data is None:
        assert subject.recipe is not None
        found = build_dataset(section, task, tokenizer, subject.recipe.seed)
        if not found.validation:
            raise DataError(f"{request.subject} held nothing out for validation; name a file with --data")
        return found.validation, found.label_names
    labels = subject.storage.labels or tuple(checkpoint.config.get("id2label", {}).values())
    section = section.model_copy(update={"labels": list(labels) or None})
    examples, reports = encode_sources(section.train, tokenizer, encode_settings(section, task))
    return examples, reports[0].label_names


def _data_section(request: EvaluationRequest, subject: Subject, checkpoint: Checkpoint) -> DataSection:
    """The run's data section with what the request says on top."""
    context = positions_in(checkpoint.config)
    changes: dict[str, object] = {} if request.max_length is None else {"max_length": request.max_length}
    if context is not None and (request.max_length or 0) > context:
        raise InputError(f"max_length={request.max_length}: the model was made for {context} positions; use fewer")
    if request.data is None and subject.recipe is None:
        raise DataError(f"{request.subject} is no run, so it has no data of its own; name a file with --data")
    if request.data is not None:
        changes["train"] = [DataSource(path=request.data)]
    if subject.recipe is not None:
        return subject.recipe.data.model_copy(update=changes)
    return DataSection.model_validate({"train": request.data, "max_length": min(1024, context or 1024)}).model_copy(
        update=changes
    )


def _scores(loaded: LoadedSubject, subject: Subject, examples: list[Example], batch_size: int) -> dict[str, Scores]:
    book = adapters_of(loaded.model)
    # padded rows: every architecture has them, and no trial of packing is needed to score once
    loader = scoring_loader(examples, Layout(packing=False, padding_free=False), batch_size, loaded.tokenizer)
    score = Scorer(loaded.model, loader, subject.storage.task)
    found = {}
    for voice in [None, *book.configs]:
        if voice is not None:
            book.activate([voice], trainable=False)
        with book.disabled() if voice is None else nullcontext():
            found[voice or BASE] = score()
    return found
