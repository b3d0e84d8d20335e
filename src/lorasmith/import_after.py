"""Importing one module as soon as another was, by whoever: what registers itself with a library waits for it."""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType


def import_after(first: str, then: str) -> None:
    """Import the module then once the module first has been; at once where that is so already."""
    if first in sys.modules:
        importlib.import_module(then)
    elif not any(isinstance(finder, _Waiting) and finder.pair == (first, then) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Waiting(first, then))


class _Waiting(MetaPathFinder):
    """Finds first as others would, for once, and has then imported when first has run."""

    def __init__(self, first: str, then: str) -> None:
        self.pair = (first, then)

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        first, then = self.pair
        if name != first:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(first)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_both(module: ModuleType) -> None:
                run(module)
                importlib.import_module(then)

            spec.loader.exec_module = run_both  # type: ignore[method-assign]
        return spec
