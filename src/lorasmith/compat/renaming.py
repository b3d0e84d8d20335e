"""Keys of an adapter's file under other names."""

import re
from collections.abc import Mapping

from torch import Tensor

from lorasmith.attach import KEY_PREFIX


def renamed(state: Mapping[str, Tensor], key_mapping: Mapping[str, str] | None) -> dict[str, Tensor]:
    """state with the keys that key_mapping, from expression to replacement, gives; the first that is found counts.

    The expressions see keys without the prefix of all, as in PEFT.
    """
    return {_renamed(key, key_mapping or {}): value for key, value in state.items()}


def _renamed(key: str, mapping: Mapping[str, str]) -> str:
    inside = key.removeprefix(KEY_PREFIX)
    prefix = key.removesuffix(inside)
    for expression, replacement in mapping.items():
        new, count = re.subn(expression, replacement, inside)
        if count:
            return prefix + new
    return key
