"""Where the answers stand in a rendered dialogue, in characters."""

from collections.abc import Sequence

from lorasmith.data.templates import Renderer
from lorasmith.data.turns import Turn
from lorasmith.errors import DataError

Span = tuple[int, int]  # first character and the one after the last


def answer_spans(
    turns: Sequence[Turn], text: str, renderer: Renderer, specials: Sequence[str]
) -> tuple[list[Span], int]:
    """The spans of the assistant's turns in text, end-of-turn token included, and how many had to be searched for.

    text is the whole dialogue as renderer writes it. An answer begins where the rendered turns before it, with the
    opening of an answer, end; and ends where the rendered turns up to it end: both are checked to be beginnings of
    text. Where a template writes beginnings otherwise than the whole (it hides earlier thoughts, say), the answer is
    searched for by its words. Raises DataError where they are not found either.
    """
    spans: list[Span] = []
    searched = 0
    for number, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        start = _rendered_start(list(turns[:number]), turn, text, renderer)
        upto = text if number + 1 == len(turns) else renderer.text(list(turns[: number + 1]))
        end = _rendered_end(upto, text, specials)
        if start is None or end is None:
            floor = spans[-1][1] if spans else 0
            found = _searched(turns, number, text, (start, end, floor), renderer.place)
            start, end = found[0], _through_special(text, found[1], specials) if end is None else end
            searched += 1
        spans.append((start, end))
    return spans, searched


def _rendered_start(before: list[Turn], turn: Turn, text: str, renderer: Renderer) -> int | None:
    if not before:
        return None
    bare, opened = renderer.text(before), renderer.text(before, add_generation_prompt=True)
    if not text.startswith(opened):
        return None
    if opened != bare:
        return len(opened)
    # the template knows no opening: right if the answer follows at once, else its header would be learned
    answer = text.find(turn["content"].strip(), len(bare))
    return len(bare) if not text[len(bare) : answer].strip() else None


def _rendered_end(upto: str, text: str, specials: Sequence[str]) -> int | None:
    if not text.startswith(upto):
        return None
    # the line break that ChatML writes behind <|im_end|> comes after generation has stopped
    stripped = upto.rstrip()
    return len(stripped) if stripped.endswith(tuple(specials)) else len(upto)


def _searched(
    turns: Sequence[Turn], number: int, text: str, known: tuple[int | None, int | None, int], place: str
) -> Span:
    """The span of an answer by its words, given its start or its end where one is known, and the last answer's end."""
    start, end, floor = known
    words = turns[number]["content"].strip()
    if end is not None:
        # the last occurrence: the words before may quote the answer
        found = text.rfind(words, floor, end)
    else:
        previous = turns[number - 1]["content"].strip() if number else ""
        quoted = text.find(previous, floor)
        found = text.find(words, start if start is not None else max(floor, quoted + len(previous)))
    if found < 0 or not words:
        raise DataError(
            f"{place}: the chat template changes the text of turn {number + 1}, so its answer cannot be told from the "
            "prompt; mark answers with {% generation %} in the template, or set loss_on: all"
        )
    return (found if start is None else start), (found + len(words) if end is None else end)


def _through_special(text: str, end: int, specials: Sequence[str]) -> int:
    """The end of the special token that follows at once, blanks aside; end where none does."""
    token_start = end + len(text[end:]) - len(text[end:].lstrip())
    following = [token for token in specials if text.startswith(token, token_start)]
    return token_start + max(map(len, following)) if following else end
