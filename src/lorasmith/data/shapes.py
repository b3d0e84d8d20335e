"""What the columns of a data set mean: the shapes of records that are known, and what each becomes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorasmith.data.record import Record
from lorasmith.data.turns import Turn, turns_of
from lorasmith.errors import DataError, nearest


@dataclass(frozen=True)
class Dialogue:
    """Turns for a chat template."""

    turns: list[Turn]
    tools: list[Any] | None = None


@dataclass(frozen=True)
class Completion:
    """A prompt as it is, and what follows it."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Text:
    """A document."""

    text: str


@dataclass(frozen=True)
class Labelled:
    """A text, or a pair of texts, and its class."""

    text: str
    pair: str | None
    label: Any


Document = Dialogue | Completion | Text | Labelled


@dataclass(frozen=True)
class Shape:
    """A layout of records, recognised by the columns that it must have."""

    name: str
    columns: tuple[str, ...]
    convert: Callable[[Record], Document]


def shape_of(records: Sequence[Record], shape: str | None, task: str) -> Shape:
    """The shape of records by the columns of the first one, or the one named by shape.

    A text with a label is a text to task "causal" and an example of its class to "classification". Raises DataError
    for columns that make no known shape, listing them, and for an unknown name.
    """
    if shape is not None:
        if shape not in SHAPES:
            raise DataError(f"shape {shape!r} is unknown; choose one of: {', '.join(SHAPES)}.{nearest(shape, SHAPES)}")
        return SHAPES[shape]
    columns = set(records[0])
    candidates = [SHAPES["text+label"]] if task == "classification" else _CAUSAL
    for candidate in candidates:
        if columns.issuperset(candidate.columns):
            return candidate
    known = "; ".join(f"{candidate.name} ({', '.join(candidate.columns)})" for candidate in candidates)
    raise DataError(
        f"{records[0].place}: the columns {', '.join(map(str, records[0])) or '(none)'} make no shape known for "
        f"{task}: {known}; rename them, or say which is which with columns: {{our name: your name}}"
    )


def renamed(record: Record, columns: Mapping[str, str]) -> Record:
    """The record with its columns under our names; columns maps our name to the one in the file."""
    fields = {name: value for name, value in record.items() if name not in columns.values()}
    for ours, theirs in columns.items():
        if theirs not in record:
            raise DataError(
                f"{record.place}: has no column {theirs!r}, which columns names for {ours!r}; it has: "
                f"{', '.join(map(str, record))}.{nearest(theirs, record)}"
            )
        fields[ours] = record[theirs]
    return Record(fields, record.place)


def text_of(record: Record, column: str, *, may_be_empty: bool = False) -> str:
    """The text in a column; DataError where it is missing, not text, or blank."""
    if column not in record:
        raise DataError(f"{record.place}: has no {column!r} (it has {', '.join(map(str, record))}); add or remove it")
    value = record[column]
    if value is None or (isinstance(value, str) and not value.strip()):
        if may_be_empty:
            return value or ""
        raise DataError(f"{record.place}: has no text in {column!r}; fix or remove the record")
    if not isinstance(value, str):
        raise DataError(
            f"{record.place}: {column!r} holds a {type(value).__name__}, not text; fix or remove the record"
        )
    return value


def _with_system(record: Record, turns: list[Turn]) -> list[Turn]:
    system = record.get("system")
    return [{"role": "system", "content": system}, *turns] if system else turns


def _messages(record: Record) -> Document:
    return Dialogue(turns_of(record.get("messages"), "messages", record.place), record.get("tools") or None)


def _sharegpt(record: Record) -> Document:
    turns = turns_of(record.get("conversations"), "conversations", record.place)
    return Dialogue(_with_system(record, turns), record.get("tools") or None)


def _alpaca(record: Record) -> Document:
    parts = [text_of(record, "instruction", may_be_empty=True)]
    if "input" in record:
        parts.append(text_of(record, "input", may_be_empty=True))
    request = "\n\n".join(part for part in parts if part.strip())
    if not request:
        raise DataError(f"{record.place}: has no text in 'instruction'; fix or remove the record")
    turns = [{"role": "user", "content": request}, {"role": "assistant", "content": text_of(record, "output")}]
    return Dialogue(_with_system(record, turns))


def _completion(record: Record) -> Document:
    prompt, completion = record.get("prompt"), record.get("completion")
    if isinstance(prompt, list) and isinstance(completion, list):
        turns = turns_of(prompt, "prompt", record.place) + turns_of(completion, "completion", record.place)
        return Dialogue(turns, record.get("tools") or None)
    return Completion(text_of(record, "prompt", may_be_empty=True), text_of(record, "completion"))


def _text(record: Record) -> Document:
    return Text(text_of(record, "text"))


def _labelled(record: Record) -> Document:
    if record.get("label") is None or record["label"] == "":
        raise DataError(f"{record.place}: has no label; fix or remove the record")
    pair = text_of(record, "text_pair") if "text_pair" in record else None
    return Labelled(text_of(record, "text"), pair, record["label"])


_CAUSAL = (
    Shape("messages", ("messages",), _messages),
    Shape("sharegpt", ("conversations",), _sharegpt),
    Shape("alpaca", ("instruction", "output"), _alpaca),
    Shape("prompt+completion", ("prompt", "completion"), _completion),
    Shape("text", ("text",), _text),
)
SHAPES = {shape.name: shape for shape in (*_CAUSAL, Shape("text+label", ("text", "label"), _labelled))}
