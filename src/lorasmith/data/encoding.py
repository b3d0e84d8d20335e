"""From records to examples: templates, tokens, loss masks, windows."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from lorasmith.data.document_tokens import LossOn, TokenRules, completion_tokens, dialogue_tokens, text_tokens
from lorasmith.data.encoding_report import EncodingReport
from lorasmith.data.example import IGNORED, Example, token_array
from lorasmith.data.labels import label_id, label_names
from lorasmith.data.record import Record, as_records
from lorasmith.data.shapes import Completion, Dialogue, Document, Labelled, Text, renamed, shape_of
from lorasmith.data.templates import ensure_chat_template_
from lorasmith.data.tokens import SpecialTokens, Tokens
from lorasmith.errors import DataError


@dataclass(frozen=True)
class EncodeSettings:
    """How records become examples.

    loss_on says what is learned: "assistant" every turn of the assistant, "completions" the last one only (both: the
    completion of a prompt), "all" every token; "auto" is "assistant" for dialogues and completions, "all" for text.
    shape and columns help where columns are not recognised: columns maps our names to those of the file. label_names
    are the classes in the order of their ids; None collects them from the records.
    """

    max_length: int = 1024
    task: Literal["causal", "classification"] = "causal"
    loss_on: LossOn = "auto"
    shape: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    label_names: Sequence[str] | None = None


def encode(
    records: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, settings: EncodeSettings
) -> list[Example]:
    """The examples of encode_reported, without the report."""
    return encode_reported(records, tokenizer, settings)[0]


def encode_reported(
    records: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, settings: EncodeSettings
) -> tuple[list[Example], EncodingReport]:
    """Examples of the records of one source, and what was done to make them.

    Dialogues and Alpaca's instructions go through the tokenizer's chat template; a tokenizer without one is given the
    plain one, in place, so that it is saved and used again. Prompts with completions and texts are taken as they are,
    an end-of-text token behind them. Text longer than max_length is cut into windows, everything else on the right.
    Raises DataError, naming file and line, for records that cannot be learned from, and where nothing is left to learn.
    """
    if settings.max_length < 2:
        raise DataError(f"max_length={settings.max_length} must be at least 2: a token and the one learned after it")
    if not records:
        raise DataError("there are no records to encode; training needs at least one")
    placed = [renamed(record, settings.columns) for record in as_records(records)]
    shape = shape_of(placed, settings.shape, settings.task)
    if (shape.name == "text+label") != (settings.task == "classification"):
        raise DataError(f"shape {shape.name!r} does not fit task {settings.task!r}; change one of the two")
    documents = [(shape.convert(record), record) for record in placed]
    tally = _Tally(settings, shape.name, len(placed))
    if isinstance(documents[0][0], Labelled):
        examples = _classified(documents, tokenizer, tally)
    else:
        examples = _generated(documents, tokenizer, tally)
    if not examples:
        raise DataError(
            f"{placed[0].place} and every record after it: all labels are masked, nothing is left to learn within "
            f"max_length={settings.max_length} tokens; raise max_length or shorten the prompts"
        )
    return examples, tally.report(examples)


@dataclass
class _Tally:
    """What is counted while a source is encoded."""

    settings: EncodeSettings
    shape: str
    records: int
    truncated: int = 0
    dropped: int = 0
    searched: int = 0
    unended: int = 0
    label_names: tuple[str, ...] = ()
    answer_ends: Counter[int] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def report(self, examples: Sequence[Example]) -> EncodingReport:
        return EncodingReport(
            shape=self.shape,
            records=self.records,
            examples=len(examples),
            tokens=sum(len(example) for example in examples),
            supervised=sum(example.supervised for example in examples),
            truncated=self.truncated,
            dropped=self.dropped,
            longest=max(len(example) for example in examples),
            max_length=self.settings.max_length,
            label_names=self.label_names,
            answer_ends=tuple(token for token, _ in self.answer_ends.most_common()),
            notes=tuple(self.notes),
        )


def _classified(
    documents: Sequence[tuple[Document, Record]], tokenizer: PreTrainedTokenizerBase, tally: _Tally
) -> list[Example]:
    labelled = [(document, record.place) for document, record in documents if isinstance(document, Labelled)]
    names = tally.settings.label_names or label_names([(document.label, place) for document, place in labelled])
    tally.label_names = tuple(names)
    texts = [document.text for document, _ in labelled]
    pairs = [document.pair or "" for document, _ in labelled] if labelled[0][0].pair is not None else None
    size = tally.settings.max_length
    encoded = tokenizer(texts, pairs, truncation=True, max_length=size)
    # only fast tokenizers tell what they cut off; for others a full example counts as cut
    cut = [bool(one.overflowing) for one in encoded.encodings or []] or [len(i) == size for i in encoded["input_ids"]]
    tally.truncated = sum(cut)
    # a single text is all of type 0, which models take where none is given
    types = encoded.get("token_type_ids") if pairs is not None else None
    return [
        Example(
            token_array(ids),
            label_id(document.label, names, place),
            None if types is None else token_array(types[number]),
        )
        for number, (ids, (document, place)) in enumerate(zip(encoded["input_ids"], labelled, strict=True))
    ]


def _generated(
    documents: Sequence[tuple[Document, Record]], tokenizer: PreTrainedTokenizerBase, tally: _Tally
) -> list[Example]:
    if any(isinstance(document, Dialogue) for document, _ in documents) and ensure_chat_template_(tokenizer):
        tally.notes.append("the tokenizer has no chat template: it was given the plain one, which is saved with it")
    rules = TokenRules(tokenizer, SpecialTokens.of(tokenizer), tally.settings.loss_on)
    examples = [
        example for document, record in documents for example in _examples(document, rules, record.place, tally)
    ]
    tally.notes += _notes(documents[0][0], rules, tally)
    return examples


def _examples(document: Document, rules: TokenRules, place: str, tally: _Tally) -> list[Example]:
    if isinstance(document, Text):
        return _windows(text_tokens(document, rules, place), tally)
    if isinstance(document, Completion):
        tokens = completion_tokens(document, rules)
    elif isinstance(document, Dialogue):
        tokens, searched = dialogue_tokens(document, rules, place)
        tally.searched += searched
    else:
        raise AssertionError(f"{type(document).__name__} is no document to generate")
    return _cut(tokens, rules, tally)


def _windows(ids: Sequence[int], tally: _Tally) -> list[Example]:
    """Windows without overlap; a window of one token predicts nothing and is dropped."""
    size = tally.settings.max_length
    windows = [token_array(ids[start : start + size]) for start in range(0, len(ids), size)]
    kept = [Example(window, window) for window in windows if len(window) > 1]
    tally.dropped += len(windows) - len(kept)
    return kept


def _cut(tokens: Tokens, rules: TokenRules, tally: _Tally) -> list[Example]:
    """The example, cut on the right; none where nothing is left to learn."""
    ids, learned = tokens
    if rules.loss_on != "all" and True in learned:
        end = ids[len(ids) - 1 - learned[::-1].index(True)]
        if end in rules.specials.ids:
            tally.answer_ends[end] += 1
        else:
            tally.unended += 1
    size = tally.settings.max_length
    labels = token_array(token if learns else IGNORED for token, learns in zip(ids[:size], learned[:size]))
    example = Example(token_array(ids[:size]), labels)
    if not example.supervised:
        tally.dropped += 1
        return []
    tally.truncated += len(ids) > size
    return [example]


def _notes(first: Document, rules: TokenRules, tally: _Tally) -> list[str]:
    """What a user should know about the answers before training on them."""
    notes = []
    tokenizer = rules.tokenizer
    if isinstance(first, Completion) and tokenizer.chat_template:
        notes.append(
            "prompts are trained as they are, without the tokenizer's chat template; give messages to train a chat"
        )
    if tally.searched:
        notes.append(f"answers found by their words, since the chat template hides earlier turns: {tally.searched}")
    if tally.unended:
        notes.append(
            f"warning: {tally.unended} of {tally.records} answers end without an end-of-text token, so the model does "
            "not learn to stop; set the tokenizer's eos_token, or write it into the chat template"
        )
    if tally.answer_ends and tokenizer.eos_token_id not in tally.answer_ends:
        ends = ", ".join(repr(tokenizer.convert_ids_to_tokens(token)) for token in tally.answer_ends)
        notes.append(
            f"answers end with {ends}, not with the eos token {tokenizer.eos_token!r}: generation must stop there"
        )
    return notes
