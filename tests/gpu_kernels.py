"""Triton's kernels as functions of CPU tensors: on a GPU where there is one, else in Triton's interpreter."""

from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, UntypedStorage
from torch.utils._pytree import tree_map

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class OnDevice:
    """A module whose functions take CPU tensors and compute on copies on DEVICE; what they write is copied back."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(self._module, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            copies: dict[int, tuple[UntypedStorage, UntypedStorage]] = {}

            def there(value: Any) -> Any:
                return _copied(value, copies) if isinstance(value, Tensor) else value

            results = function(*tree_map(there, args), **tree_map(there, kwargs))
            for storage, copy in copies.values():
                storage.copy_(copy)
            return tree_map(lambda value: value.cpu() if isinstance(value, Tensor) else value, results)

        return call


def _copied(value: Tensor, copies: dict[int, tuple[UntypedStorage, UntypedStorage]]) -> Tensor:
    """value on DEVICE with its strides and all that lies between them, which Tensor.to leaves out."""
    storage = value.untyped_storage()
    if storage._cdata not in copies:
        copies[storage._cdata] = storage, UntypedStorage(storage.nbytes(), device=DEVICE).copy_(storage)
    copy = copies[storage._cdata][1]
    return torch.tensor([], dtype=value.dtype, device=DEVICE).set_(
        copy, value.storage_offset(), value.shape, value.stride()
    )


def triton_kernels(op: str) -> OnDevice:
    """lorasmith.ops.<op>.triton; the test is skipped without triton."""
    pytest.importorskip("triton", reason="triton is not installed")
    return OnDevice(import_module(f"lorasmith.ops.{op}.triton"))
