"""Loading straight onto a GPU: what transformers reads of a checkpoint arrives on the device.

transformers places tensors by a device map, which needs another library and reserves the whole model's memory before
it; so it is left to think that it loads on the CPU, and what it reads stays where it is.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lorasmith.models.read_ahead import ReadAhead, Staging
from lorasmith.models.tensor_file import StoredTensor


def streams(device: torch.device) -> bool:
    """Whether tensors go to device on their own way; elsewhere they are read into memory and the model is moved."""
    return device.type == "cuda"


@contextmanager
def streamed(
    tensors: Mapping[str, StoredTensor], device: torch.device, *, one_by_one: bool
) -> Iterator[dict[str, StoredTensor]]:
    """The tensors, which come to stand on device when they are indexed while the block runs.

    one_by_one says that they are asked for one after the other, as transformers does where weights are quantized as
    they arrive: then the next is read meanwhile. Otherwise its threads ask for several at once, and each reads its own.
    """
    if not streams(device):
        yield dict(tensors)
    elif one_by_one:
        # by the names that transformers sorts; another order costs time only
        order = [tensors[name] for name in sorted(tensors, key=by_name)]
        with ReadAhead(order, Staging(device)) as ahead:
            yield _read_by(tensors, ahead.take)
    else:
        yield _read_by(tensors, _ByThread(device).take)


def by_name(name: str) -> list[tuple[bool, int, str]]:
    """The key that sorts names of tensors with their numbers as numbers, and before words."""
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in name.split(".")]


def _read_by(tensors: Mapping[str, StoredTensor], take: Callable[[StoredTensor], Tensor]) -> dict[str, StoredTensor]:
    def reader(stored: StoredTensor) -> Tensor:
        return take(stored).as_subclass(_Placed)

    return {name: replace(stored, reader=reader) for name, stored in tensors.items()}


class _ByThread:
    """Stored tensors by request, each read by the thread that asks, through buffers of its own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._own = threading.local()

    def take(self, stored: StoredTensor) -> Tensor:
        if "staging" not in vars(self._own):
            self._own.staging = Staging(self._device)
        tensor: Tensor = self._own.staging.read(stored).here()
        return tensor


class _Placed(Tensor):
    """A tensor that is where it shall be: `to` changes its type alone, and gives a plain tensor."""

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> Tensor:  # type: ignore[override]
        plain = self.as_subclass(Tensor)
        return plain if dtype is None else plain.to(dtype)
