"""Triton's kernels as functions of CPU tensors: on a GPU where there is one, else in Triton's interpreter."""

from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class OnDevice:
    """A module whose functions are given CPU tensors and compute on DEVICE; what they write is copied back."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(self._module, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            moved: list[tuple[Tensor, Tensor]] = []

            def there(value: Any) -> Any:
                if not isinstance(value, Tensor):
                    return value
                moved.append((value, value.to(DEVICE)))
                return moved[-1][1]

            here = tree_map(
                lambda value: value.cpu() if isinstance(value, Tensor) else value,
                function(*tree_map(there, args), **tree_map(there, kwargs)),
            )
            for before, after in moved:
                if after is not before and not before.requires_grad:
                    before.copy_(after)
            return here

        return call


def triton_kernels(op: str) -> OnDevice:
    """lorasmith.ops.<op>.triton; the test is skipped without triton."""
    pytest.importorskip("triton", reason="triton is not installed")
    return OnDevice(import_module(f"lorasmith.ops.{op}.triton"))
