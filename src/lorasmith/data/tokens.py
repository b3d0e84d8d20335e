"""From text with marked spans to tokens that are learned or not."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from transformers import PreTrainedTokenizerBase

from lorasmith.data.spans import Span

Tokens = tuple[list[int], list[bool]]  # ids, and whether each is learned
Offsets = list[tuple[int, int]]  # the characters that each token stands for

# How many tokens before a span are tokenized again on their own, and how many of them are compared: the tokens of a
# text do not depend on what stands far before it, but the first ones of a stretch do on where it was cut out.
_STRETCH = 16
_COMPARED = 4


@dataclass(frozen=True)
class SpecialTokens:
    """The special tokens of a tokenizer: as ids, as the texts that templates write, and those it puts before a text."""

    ids: frozenset[int]
    texts: tuple[str, ...]
    before: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "SpecialTokens":
        """Those that the tokenizer names (eos, ...), and the added ones that are marked special (<|im_end|>, ...)."""
        added = {
            int(index): str(token.content) for index, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        named = dict(zip(map(int, tokenizer.all_special_ids), map(str, tokenizer.all_special_tokens)))
        texts = tuple(sorted({*added.values(), *named.values()}))
        return cls(frozenset({**added, **named}), texts, _added_before(tokenizer))


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of text, however long, without those that the tokenizer adds of itself."""
    # verbose=False: long text is cut into windows here, so the warning about the model's length is wrong
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def span_tokens(tokenizer: PreTrainedTokenizerBase, text: str, spans: Sequence[Span]) -> Tokens:
    """The tokens of text, learned where they begin inside one of spans (ascending, apart from each other).

    The tokens before a span are those that generation gets when it is given the text before it. Where the tokenizer
    would cut the whole text otherwise (a prompt that ends in a blank joins the answer), it is tokenized in pieces.
    """
    if tokenizer.is_fast:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids, offsets = list(encoded["input_ids"]), list(encoded["offset_mapping"])
        if all(_cut_alike(tokenizer, text, (ids, offsets), span[0]) for span in spans):
            return ids, _inside(offsets, spans)
    return _by_pieces(tokenizer, text, spans)


def _added_before(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    bare, whole = token_ids(tokenizer, "x"), list(tokenizer("x")["input_ids"])
    starts = [start for start in range(len(whole)) if whole[start : start + len(bare)] == bare]
    return tuple(whole[: starts[0]]) if starts else ()


def _inside(offsets: Offsets, spans: Sequence[Span]) -> list[bool]:
    """Whether each token begins inside one of spans."""
    inside = []
    remaining = list(spans)
    for start, _ in offsets:
        while remaining and start >= remaining[0][1]:
            remaining.pop(0)
        inside.append(bool(remaining) and remaining[0][0] <= start)
    return inside


def _cut_alike(tokenizer: PreTrainedTokenizerBase, text: str, tokens: tuple[list[int], Offsets], start: int) -> bool:
    """Whether text up to start, tokenized without the rest, ends in the same tokens as inside the whole."""
    ids, offsets = tokens
    before = sum(1 for _, end in offsets if end <= start)
    first = max(0, before - _STRETCH)
    stretch = text[offsets[first][0] if first else 0 : start]
    alone, inside = token_ids(tokenizer, stretch), ids[first:before]
    return alone[-_COMPARED:] == inside[-_COMPARED:] if first else alone == inside


def _by_pieces(tokenizer: PreTrainedTokenizerBase, text: str, spans: Sequence[Span]) -> Tokens:
    bounds = sorted({0, len(text), *(bound for span in spans for bound in span)})
    ids: list[int] = []
    learned: list[bool] = []
    for start, end in pairwise(bounds):
        piece = _continuing(tokenizer, text[start:end]) if start else token_ids(tokenizer, text[:end])
        ids += piece
        learned += [any(span[0] <= start < span[1] for span in spans)] * len(piece)
    return ids, learned


def _continuing(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Tokens of text in the middle of a text: without the blank that SentencePiece puts before a beginning."""
    anchor, anchored = token_ids(tokenizer, "\n"), token_ids(tokenizer, "\n" + text)
    return anchored[len(anchor) :] if anchored[: len(anchor)] == anchor else token_ids(tokenizer, text)
