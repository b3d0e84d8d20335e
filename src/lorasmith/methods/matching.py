"""When a module's path is meant by a name, a list of names or an expression."""

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

from lorasmith.errors import AttachError

V = TypeVar("V")


def matches(path: str, wanted: str | Iterable[str] | None) -> bool:
    """Whether path is meant: a string must match the whole path as an expression, a list by equality or dotted end."""
    if not wanted:
        return False
    if isinstance(wanted, str):
        return compiled(wanted, "target_modules or exclude_modules").fullmatch(path) is not None
    return any(named(path, name) for name in wanted)


def compiled(expression: str, field: str) -> re.Pattern[str]:
    """The compiled expression; AttachError, naming the config's field, where it is none."""
    try:
        return re.compile(expression)
    except re.error as error:
        raise AttachError(f"{field}: {expression!r} is no regular expression ({error})") from None


def named(path: str, name: str) -> bool:
    """Whether path is name or ends in it behind a dot."""
    return path == name or path.endswith(f".{name}")


def layer_number(path: str, lists: list[str]) -> int | None:
    """The number of the layer that path lies in: the first number behind a list (named one of lists, if any are)."""
    if not lists:
        found = re.match(r".*?\.[^.]*\.(\d+)\.", path)
        return int(found[1]) if found else None
    for name in lists:
        found = compiled(rf"(?:^|.*?\.){name}\.(\d+)\.", "layers_pattern").match(path)
        if found:
            return int(found[1])
    return None


def patterned(patterns: Mapping[str, V], path: str, default: V) -> V:
    """The value of the first pattern that is the whole path or a dotted end of it, as PEFT matches, else default."""
    for pattern, value in patterns.items():
        if compiled(rf"(.*\.)?({pattern})$", "rank_pattern or alpha_pattern").match(path):
            return value
    return default
