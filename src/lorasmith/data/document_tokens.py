"""The tokens of one document, and which of them are learned."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedTokenizerBase

from lorasmith.data.shapes import Completion, Dialogue, Text
from lorasmith.data.spans import answer_spans
from lorasmith.data.templates import Renderer
from lorasmith.data.tokens import SpecialTokens, Tokens, span_tokens, token_ids
from lorasmith.errors import DataError

LossOn = Literal["auto", "completions", "assistant", "all"]


@dataclass(frozen=True)
class TokenRules:
    """What the tokens of every document of a source depend on."""

    tokenizer: PreTrainedTokenizerBase
    specials: SpecialTokens
    loss_on: LossOn


def text_tokens(document: Text, rules: TokenRules, place: str) -> list[int]:
    """The tokens of a text, all of which are learned, with the end-of-text token behind them."""
    if rules.loss_on in ("completions", "assistant"):
        raise DataError(f"{place}: plain text has no answers for loss_on: {rules.loss_on}; set loss_on: all")
    ids = token_ids(rules.tokenizer, document.text)
    return [*_missing_before(ids, rules), *ids, *_missing_eos(ids, rules)]


def completion_tokens(document: Completion, rules: TokenRules) -> Tokens:
    """The tokens of a prompt and its completion as they are, with the end-of-text token, which is learned too."""
    text = document.prompt + document.completion
    start = 0 if rules.loss_on == "all" else len(document.prompt)
    ids, learned = span_tokens(rules.tokenizer, text, [(start, len(text))])
    before, eos = _missing_before(ids, rules), _missing_eos(ids, rules)
    return [*before, *ids, *eos], [*([False] * len(before)), *learned, *([True] * len(eos))]


def dialogue_tokens(document: Dialogue, rules: TokenRules, place: str) -> tuple[Tokens, bool]:
    """The tokens of a rendered dialogue, and whether an answer had to be searched for by its words.

    Raises DataError, naming place, for a dialogue without an answer where answers are learned.
    """
    renderer = Renderer(rules.tokenizer, document.tools, place)
    if rules.loss_on == "all":
        ids = token_ids(rules.tokenizer, renderer.text(document.turns))
        return (ids, [True] * len(ids)), False
    answers = sum(turn["role"] == "assistant" for turn in document.turns)
    if not answers:
        raise DataError(f"{place}: has no assistant turn to learn from; remove the record, or set loss_on: all")
    last_only = rules.loss_on == "completions"
    if renderer.marks_answers():
        marked = _marked(document, renderer, rules.specials)
        runs = _runs(marked[1])
        if len(runs) == answers:
            return (_only_run(marked, runs[-1]) if last_only else marked), False
    text = renderer.text(document.turns)
    spans, searched = answer_spans(document.turns, text, renderer, rules.specials.texts)
    tokens = span_tokens(rules.tokenizer, text, spans[-1:] if last_only else spans)
    return tokens, searched > 0


def _missing_before(ids: Sequence[int], rules: TokenRules) -> list[int]:
    """The BOS that the tokenizer puts before a text, where the text does not begin with it already."""
    before = list(rules.specials.before)
    return [] if list(ids[: len(before)]) == before else before


def _missing_eos(ids: Sequence[int], rules: TokenRules) -> list[int]:
    eos = rules.tokenizer.eos_token_id
    return [] if eos is None or (ids and ids[-1] == eos) else [int(eos)]


def _marked(document: Dialogue, renderer: Renderer, specials: SpecialTokens) -> Tokens:
    """The tokens that the template marks as generated, and the end-of-turn token behind each run of them."""
    ids, marks = renderer.marked_tokens(document.turns)
    learned = [bool(mark) for mark in marks]
    for position in range(1, len(ids)):
        ended = ids[position - 1] in specials.ids
        if marks[position - 1] and not marks[position] and not ended and ids[position] in specials.ids:
            learned[position] = True
    return ids, learned


def _runs(learned: Sequence[bool]) -> list[tuple[int, int]]:
    """The stretches of learned tokens: first position and the one after the last."""
    bounds = [False, *learned, False]
    starts = [position for position in range(len(learned)) if bounds[position + 1] and not bounds[position]]
    ends = [position for position in range(1, len(learned) + 1) if bounds[position] and not bounds[position + 1]]
    return list(zip(starts, ends, strict=True))


def _only_run(tokens: Tokens, run: tuple[int, int]) -> Tokens:
    return tokens[0], [run[0] <= position < run[1] for position in range(len(tokens[0]))]
