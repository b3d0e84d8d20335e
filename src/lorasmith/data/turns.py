"""Turns of a dialogue in the form that chat templates take: role and content."""

from collections.abc import Mapping
from typing import Any

from lorasmith.errors import DataError

Turn = dict[str, Any]

# ShareGPT's names of the speakers, and those of its descendants
_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function": "tool",
}
_TEMPLATE_ROLES = ("system", "developer", "user", "assistant", "tool")


def turns_of(value: Any, column: str, place: str) -> list[Turn]:
    """The turns in a column of messages: each with role and content, or ShareGPT's from and value.

    Fields that templates may read (name, tool_calls, ...) are kept. Raises DataError for a turn without text.
    """
    if not isinstance(value, list) or not value:
        raise DataError(f"{place}: {column!r} must be a list of at least one turn; fix or remove the record")
    return [_turn(turn, f"{place}, turn {number} of {column!r}") for number, turn in enumerate(value, 1)]


def _turn(turn: Any, place: str) -> Turn:
    if not isinstance(turn, Mapping):
        raise DataError(f"{place}: must have role and content (or from and value), not be a {type(turn).__name__}")
    role = turn.get("role", turn.get("from"))
    role = _ROLES.get(str(role), role)
    if role not in _TEMPLATE_ROLES:
        raise DataError(f"{place}: the role {role!r} is unknown; known: {', '.join([*_TEMPLATE_ROLES, *_ROLES])}")
    content = _text(turn.get("content", turn.get("value")), place)
    if not content.strip() and role in ("user", "assistant") and not turn.get("tool_calls"):
        raise DataError(f"{place}: has no text; fix or remove the record")
    # a stored None (tables fill missing fields with it) is a missing field to a template
    others = {name: field for name, field in turn.items() if field is not None}
    return {**{n: f for n, f in others.items() if n not in ("from", "value")}, "role": role, "content": content}


def _text(content: Any, place: str) -> str:
    """Content as one string: itself, or the text parts of a list of parts."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    if all(isinstance(part, Mapping) and part.get("type") == "text" for part in parts):
        return "".join(str(part["text"]) for part in parts)
    raise DataError(f"{place}: the content must be text; images and other parts are not supported")
