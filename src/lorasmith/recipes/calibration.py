"""The text that a merge is calibrated on, and the other text that it is measured on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from lorasmith.data import Batch, Example
from lorasmith.errors import DataError
from lorasmith.models.checkpoint import Checkpoint
from lorasmith.recipes.dataset import build_dataset, encode_settings, encode_sources
from lorasmith.recipes.positions import positions_in
from lorasmith.recipes.sections import DataSection
from lorasmith.recipes.streams import Layout, scoring_loader
from lorasmith.recipes.subject import Subject

# the beginning of The Adventures of Sherlock Holmes, by Arthur Conan Doyle, in the public domain
DEFAULT_TEXT = Path(__file__).with_name("default_text.txt")
WINDOW = 256
MEASURED_TOKENS = 8192
CALIBRATION_TOKENS = 16384
# calibration tokens for each input feature of the widest layer: fewer rows of input than columns say too little
_TOKENS_A_FEATURE = 4
_MOST_TOKENS = 65536
# logits of one batch, elements
_LOGITS = 1 << 24


@dataclass(frozen=True)
class Texts:
    """Batches to calibrate on and others to measure on, and where they are from."""

    calibration: list[Batch]
    measured: list[Batch]
    origin: str

    def to(self, device: torch.device) -> "Texts":
        """The same texts on device."""
        moved = [[batch.to(device) for batch in part] for part in (self.calibration, self.measured)]
        return Texts(moved[0], moved[1], self.origin)


@dataclass(frozen=True)
class TextExamples:
    """The examples that the texts are made of."""

    calibration: Sequence[Example]
    measured: Sequence[Example]
    origin: str


def read_examples(
    file: str | None, subject: Subject, checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerBase
) -> TextExamples:
    """The examples of a data file; without one the run's own data, or a default text for a causal model without a run.

    A file is parted, every fifth example to measure on. Raises DataError for a file that cannot be read, and for a
    classifier without data.
    """
    task = subject.storage.task
    length = min(WINDOW, positions_in(checkpoint.config) or WINDOW)
    if file is None and subject.recipe is not None:
        section = subject.recipe.data.model_copy(update={"max_length": min(length, subject.recipe.data.max_length)})
        found = build_dataset(section, task, tokenizer, subject.recipe.seed)
        if found.validation:
            return TextExamples(found.train, found.validation, "the run's own data")
        return TextExamples(*_parted(found.train), "the run's own data")
    if file is None and task == "classification":
        raise DataError("a classifier's merge is measured on labelled examples; name a file with --calibration")
    section = DataSection.model_validate({"train": file or str(DEFAULT_TEXT), "max_length": length})
    section = section.model_copy(update={"labels": list(subject.storage.labels) or None})
    examples, _ = encode_sources(section.train, tokenizer, encode_settings(section, task))
    return TextExamples(*_parted(examples), file or "a default English text")


def batched(examples: TextExamples, checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerBase, widest: int) -> Texts:
    """As much of the examples as is needed, in batches; widest is the number of input features of the widest layer."""
    tokens = min(_MOST_TOKENS, max(CALIBRATION_TOKENS, _TOKENS_A_FEATURE * widest))
    vocabulary = int(checkpoint.config.get("vocab_size") or len(tokenizer))
    rows = max(1, min(16, _LOGITS // (WINDOW * vocabulary)))
    return Texts(
        _batches(_first(examples.calibration, tokens), rows, tokenizer),
        _batches(_first(examples.measured, MEASURED_TOKENS), rows, tokenizer),
        examples.origin,
    )


def _parted(examples: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    measured = list(examples[4::5])
    if not measured:
        raise DataError(f"{len(examples)} examples are too few to calibrate on some and measure on others; give 5")
    return [example for number, example in enumerate(examples) if number % 5 != 4], measured


def _first(examples: Sequence[Example], tokens: int) -> list[Example]:
    """As many of the examples, evenly spread over all, as hold about that many tokens."""
    total = sum(len(example) for example in examples)
    step = max(1, total // tokens)
    return list(examples[::step])


def _batches(examples: list[Example], rows: int, tokenizer: PreTrainedTokenizerBase) -> list[Batch]:
    # padded rows: every architecture has them
    layout = Layout(packing=False, padding_free=False)
    return list(scoring_loader(examples, layout, rows, tokenizer).one_pass())
