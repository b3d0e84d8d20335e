"""A value worked out from tensors and kept until one of them changes."""

import weakref
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor
from torch._guards import active_fake_mode

T = TypeVar("T")


class Kept(Generic[T]):
    """One such value. A change is a write through torch (an optimizer's step, a load) or another tensor or memory.

    A write through `.data` goes unseen; who may have written so forgets the value. Nothing is kept of tensors of the
    inference mode, which count no writes, nor while a compiler or a memory plan looks on. A copy begins empty.
    """

    def __init__(self) -> None:
        # of each source the tensor itself, its memory, and how often it was written to
        self._stamp: list[tuple[weakref.ref[Tensor], int, int]] | None = None
        self._key: object = None
        self._value: T | None = None

    def get(self, sources: Sequence[Tensor], make: Callable[[], T], key: object = None) -> T:
        """The value that make gives, made again where sources are not what they were, or another key asks."""
        if torch.compiler.is_compiling() or active_fake_mode() is not None or any(t.is_inference() for t in sources):
            return make()
        if key != self._key or not self._holds(sources):
            self._value, self._key = make(), key
            self._stamp = [(weakref.ref(tensor), tensor.data_ptr(), tensor._version) for tensor in sources]
        return cast(T, self._value)

    def forget(self) -> None:
        """Drop the value."""
        self._stamp = self._value = None

    def _holds(self, sources: Sequence[Tensor]) -> bool:
        stamp = self._stamp
        return (
            stamp is not None
            and len(stamp) == len(sources)
            and all(
                held() is tensor and memory == tensor.data_ptr() and writes == tensor._version
                for (held, memory, writes), tensor in zip(stamp, sources, strict=True)
            )
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return Kept, ()
