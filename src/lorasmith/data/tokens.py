"""From text with marked spans to tokens that are learned or not."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from transformers import PreTrainedTokenizerBase

from lorasmith.data.spans import Span

Tokens = tuple[list[int], list[bool]]  # ids, and whether each is learned


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str, add_special_tokens: bool) -> list[int]:
    """The tokens of text, however long; with add_special_tokens those that the tokenizer adds, BOS never twice."""
    # verbose=False: long text is cut into windows here, so the warning about the model's length is wrong
    ids = list(tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)["input_ids"])
    if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id:
        return ids[1:]
    return ids


def span_tokens(
    tokenizer: PreTrainedTokenizerBase, text: str, spans: Sequence[Span], add_special_tokens: bool
) -> Tokens:
    """The tokens of text, learned where they begin inside one of spans (ascending, apart from each other).

    No token lies across the beginning of a span, because generation gets the text before it as tokens of their own:
    where the tokenizer would join the two (a prompt that ends in a blank), the text is tokenized in pieces.
    """
    whole = _by_offsets(tokenizer, text, spans, add_special_tokens) if tokenizer.is_fast else None
    return whole or _by_pieces(tokenizer, text, spans, add_special_tokens)


@dataclass(frozen=True)
class SpecialTokens:
    """The special tokens of a tokenizer, as ids and as the texts that templates write."""

    ids: frozenset[int]
    texts: tuple[str, ...]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "SpecialTokens":
        """Those that the tokenizer names (eos, ...), and the added ones that are marked special (<|im_end|>, ...)."""
        added = {
            int(index): str(token.content) for index, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        named = dict(zip(map(int, tokenizer.all_special_ids), map(str, tokenizer.all_special_tokens)))
        return cls(frozenset({**added, **named}), tuple(sorted({*added.values(), *named.values()})))


def _by_offsets(
    tokenizer: PreTrainedTokenizerBase, text: str, spans: Sequence[Span], add_special_tokens: bool
) -> Tokens | None:
    """None where a token lies across the beginning of a span."""
    encoded = tokenizer(text, add_special_tokens=add_special_tokens, return_offsets_mapping=True, verbose=False)
    ids, offsets = list(encoded["input_ids"]), list(encoded["offset_mapping"])
    if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id:
        ids, offsets = ids[1:], offsets[1:]
    learned = []
    remaining = list(spans)
    for start, end in offsets:
        while remaining and start >= remaining[0][1]:
            remaining.pop(0)
        if remaining and start < remaining[0][0] < end:
            return None
        # tokens that the tokenizer adds of itself have the empty offset (0, 0)
        learned.append(bool(remaining) and remaining[0][0] <= start and end > 0)
    return ids, learned


def _by_pieces(
    tokenizer: PreTrainedTokenizerBase, text: str, spans: Sequence[Span], add_special_tokens: bool
) -> Tokens:
    bounds = sorted({0, len(text), *(bound for span in spans for bound in span)})
    ids: list[int] = []
    learned: list[bool] = []
    for start, end in pairwise(bounds):
        first = start == 0
        piece = token_ids(tokenizer, text[start:end], add_special_tokens and first)
        if not first:
            piece = _continuing(tokenizer, text[start:end], piece)
        ids += piece
        learned += [any(span[0] <= start < span[1] for span in spans)] * len(piece)
    return ids, learned


def _continuing(tokenizer: PreTrainedTokenizerBase, text: str, alone: list[int]) -> list[int]:
    """Tokens of text in the middle of a text: without the blank that SentencePiece puts before a beginning."""
    anchor = token_ids(tokenizer, "\n", add_special_tokens=False)
    anchored = token_ids(tokenizer, "\n" + text, add_special_tokens=False)
    return anchored[len(anchor) :] if anchored[: len(anchor)] == anchor else alone
