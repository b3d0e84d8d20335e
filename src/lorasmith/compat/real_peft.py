"""The real peft beside us: whether it is there, and what must pass for one of its own."""

import sys
from types import ModuleType
from typing import Any

from lorasmith.attach import Adapted


def real_peft() -> ModuleType | None:
    """The real peft, if something has imported it."""
    return sys.modules.get("peft")


class AdaptedHead:
    """An output head with adapters, under the class that PEFT gives such layers.

    TRL's trainers multiply by the head's stored weight themselves, so that an adapter on it would never be trained.
    They refuse that, and know an adapted head by PEFT's class alone.
    """

    def __init__(self, head: Adapted) -> None:
        self.head = head

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        peft: Any = real_peft()
        return AdaptedHead if peft is None else peft.tuners.tuners_utils.BaseTunerLayer

    def __getattr__(self, name: str) -> Any:
        if name == "head":
            raise AttributeError(name)
        return getattr(self.head, name)


def as_peft_sees(head: Any) -> Any:
    """head, under PEFT's class where it is adapted and PEFT is there."""
    return AdaptedHead(head) if isinstance(head, Adapted) and real_peft() is not None else head
