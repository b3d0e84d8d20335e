"""Whether the fields of a config hold values of the kinds that they are declared with."""

from collections.abc import Mapping
from dataclasses import fields
from numbers import Integral, Real
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin

from lorasmith.errors import AdapterError, nearest

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")

_WORDS = {
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "an object of values by name",
}


def require_kinds(config: "DataclassInstance") -> None:
    """Check the fields of a dataclass's instance: no None where none is meant, numbers and objects where they are.

    Raises AdapterError that names the field. What else a field may be is said by the config's own checks.
    """
    for field in fields(config):
        value = getattr(config, field.name)
        kinds = _kinds(field.type)
        # None for a truth value is false, as scripts written for PEFT have it
        if Any in kinds or (value is None and (type(None) in kinds or bool in kinds)):
            continue
        if value is None or not _fits(value, kinds):
            words = " or ".join(dict.fromkeys(_words(kind) for kind in kinds if kind is not type(None)))
            raise AdapterError(f"{field.name}={value!r} must be {words}; leave it out for its default")


def with_fields(kind: type[T], values: Mapping[str, Any], name: str) -> T:
    """An instance of a dataclass with these fields; AdapterError, with the nearest, for one that name does not have."""
    known = [field.name for field in fields(kind)]
    for field in values:
        if field not in known:
            raise AdapterError(f"{name} has no field {field!r}.{nearest(field, known)}")
    return kind(**values)


def _kinds(declared: Any) -> tuple[Any, ...]:
    return get_args(declared) if get_origin(declared) in (Union, UnionType) else (declared,)


def _fits(value: Any, kinds: tuple[Any, ...]) -> bool:
    """Whether value is of the one kind that is declared beside None; of several kinds any value passes."""
    kind, *others = (kind for kind in kinds if kind is not type(None))
    if others:
        return True
    if kind in (int, float):
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    if get_origin(kind) is not dict:
        return True
    inner = get_args(kind)[1]
    return isinstance(value, Mapping) and (
        inner not in (int, float) or all(_fits(each, (inner,)) for each in value.values())
    )


def _words(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    origin = get_origin(kind) or kind
    inner = get_args(kind)[1] if origin is dict else None
    if inner in (int, float):
        return f"an object of {'whole numbers' if inner is int else 'numbers'} by name"
    return _WORDS.get(origin, f"a {getattr(origin, '__name__', origin)}")
