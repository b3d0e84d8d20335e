"""The bytes of all tensors that live at one time, whatever the allocator makes of them."""

import gc
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveTensors(TorchDispatchMode):
    """peak: the most bytes of storages alive at once while this mode was on, those from before it included.

    Buffers that live only inside one operator are not seen. Slow: for a step that is not timed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()
        for thing in gc.get_objects():
            # not isinstance, which asks lazy modules of transformers for their class and so imports them
            if issubclass(type(thing), torch.Tensor):
                self._count(thing)

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf)
        return result

    def _count(self, tensor: torch.Tensor) -> None:
        if tensor.layout != torch.strided:
            # indices and values are tensors of their own, counted where they were made
            return
        storage = tensor.untyped_storage()
        # a compiler's stand-ins, which may outlive it, hold no bytes
        if storage.device.type == "meta" or storage in self._seen:
            return
        self._seen.add(storage)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, storage.nbytes())

    def _free(self, size: int) -> None:
        self.live -= size
