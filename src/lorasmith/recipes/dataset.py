"""From the data section of a recipe to examples, parted into training and validation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from lorasmith.data import EncodeSettings, EncodingReport, Example, encode_reported, mix, read, split
from lorasmith.errors import DataError
from lorasmith.recipes.sections import DataSection, DataSource, Task

# records that were handed over in memory, in place of a file
Records = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Dataset:
    """Examples to train and to score on, the names of the classes, and the tokens that answers end with."""

    train: list[Example]
    validation: list[Example]
    label_names: tuple[str, ...]
    answer_ends: tuple[int, ...]
    lines: list[str]

    @property
    def longest(self) -> int:
        """Tokens of the longest example."""
        return max(len(example) for example in [*self.train, *self.validation])


def build_dataset(
    data: DataSection,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    held: Mapping[str, Records] | None = None,
) -> Dataset:
    """Reads, encodes, mixes and parts the sources; held has records in memory, by the path that stands for them.

    A tokenizer without a chat template gets the plain one where dialogues need it. Raises DataError, naming file and
    line, for anything that cannot be read or learned from.
    """
    settings = encode_settings(data, task)
    train, reports = encode_sources(data.train, tokenizer, settings, held)
    names = _label_names(settings, reports)
    settings = replace(settings, label_names=names or None)
    lines = [line for report in reports for line in report.lines()]
    if data.validation is None:
        train, validation = split(train, data.validation_fraction, seed)
    else:
        validation, held_out = encode_sources(data.validation, tokenizer, settings, held)
        lines += [f"validation: {line}" for report in held_out for line in report.lines()]
    ends = tuple(dict.fromkeys(token for report in reports for token in report.answer_ends))
    return Dataset(train, validation, names, ends, lines)


def encode_settings(data: DataSection, task: Task) -> EncodeSettings:
    """What the encoder is told of every source."""
    names = tuple(data.labels) if data.labels else None
    return EncodeSettings(max_length=data.max_length, task=task, loss_on=data.loss_on, label_names=names)


def encode_sources(
    listed: Sequence[DataSource],
    tokenizer: PreTrainedTokenizerBase,
    settings: EncodeSettings,
    held: Mapping[str, Records] | None = None,
) -> tuple[list[Example], list[EncodingReport]]:
    """The mixed examples of several sources, and a report on each."""
    parts, reports = [], []
    for source in listed:
        in_memory = (held or {}).get(source.path)
        records = read(source.path, source.split, source.subset) if in_memory is None else in_memory
        told = replace(settings, shape=source.shape, columns=source.columns)
        examples, report = encode_reported(records[: source.limit], tokenizer, told)
        parts.append((examples, source.weight))
        reports.append(report)
    # which records a weight below 1 takes must not change when a run is repeated with another seed
    return mix(parts, seed=0), reports


def _label_names(settings: EncodeSettings, reports: Sequence[EncodingReport]) -> tuple[str, ...]:
    if settings.label_names:
        return tuple(settings.label_names)
    found = {report.label_names for report in reports}
    if len(found) > 1:
        raise DataError("the data sources have different labels; list all of them, in order, as data.labels")
    return found.pop()
