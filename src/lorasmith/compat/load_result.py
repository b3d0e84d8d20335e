"""What loading a state returns."""

from typing import NamedTuple


class LoadResult(NamedTuple):
    """The keys that were not there, and those that nothing took, as torch has it."""

    missing_keys: list[str]
    unexpected_keys: list[str]
