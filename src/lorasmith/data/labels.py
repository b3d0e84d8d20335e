"""Classes by name and by number."""

from collections.abc import Sequence
from typing import Any

from lorasmith.errors import DataError, nearest

# classes by number beyond which there must be as many records
_MOST_CLASSES = 10_000


def label_names(labels: Sequence[tuple[Any, str]]) -> tuple[str, ...]:
    """The names of the classes, in the order of their ids, from (label, place) pairs.

    Numbers (also as text, and true and false) are ids already: the names are "0" to the greatest. Other text is sorted.
    Raises DataError for a label that is neither, for a mixture, and for a number that can be no class's.
    """
    numbers = [_number(label, place) for label, place in labels]
    known = [number for number in numbers if number is not None]
    if len(known) == len(numbers):
        greatest = max(known)
        if greatest >= max(len(labels), _MOST_CLASSES):
            _, place = labels[known.index(greatest)]
            raise DataError(
                f"{place}: the label {greatest} would make {greatest + 1:,} classes for {len(labels):,} records; "
                "number the classes from 0, or write their names"
            )
        return tuple(str(number) for number in range(greatest + 1))
    for number, (label, place) in zip(numbers, labels, strict=True):
        if number is not None and not isinstance(label, str):
            raise DataError(f"{place}: the label {label!r} is a number where others are names; use one kind")
    return tuple(sorted({str(label) for label, _ in labels}))


def label_id(label: Any, names: Sequence[str], place: str) -> int:
    """The id of a label among names; DataError, with the nearest name, where it is none of them."""
    if isinstance(label, str) and label in names:
        return names.index(label)
    number = _number(label, place)
    if number is None or number >= len(names):
        known = ", ".join(names)
        raise DataError(
            f"{place}: the label {label!r} is none of the {len(names)}: {known}.{nearest(str(label), names)}"
        )
    return number


def _number(label: Any, place: str) -> int | None:
    """The label as a class id, None for a name."""
    if isinstance(label, str):
        return int(label) if label.strip().isascii() and label.strip().isdigit() else None
    if not isinstance(label, int | float) or not float(label).is_integer():
        raise DataError(f"{place}: the label {label!r} is neither a name nor a whole number; fix or remove the record")
    if label < 0:
        raise DataError(
            f"{place}: the label {label!r} is negative, the mark of an unlabelled record; remove the record"
        )
    return int(label)
