"""Tables from a name to a thing, filled by the files of one package."""

import importlib
import pkgutil
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from lorasmith.errors import InputError, nearest

T = TypeVar("T")


class Registry(Generic[T]):
    """A table of named things that refuses duplicates and lists its choices when asked for a stranger.

    The files of package are imported at the first look-up, so that adding a thing is adding a file.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._things: dict[str, T] = {}
        self._found = self._finding = False
        self._lock = threading.RLock()

    def add(self, name: str, thing: T) -> T:
        """Enter thing under name; ValueError where the name is taken."""
        if name in self._things:
            raise ValueError(f"{self.kind} {name!r} is registered twice; give one of the two another name")
        self._things[name] = thing
        return thing

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator form of add."""
        return lambda thing: self.add(name, thing)

    def names(self) -> list[str]:
        self._find()
        return sorted(self._things)

    def items(self) -> list[tuple[str, T]]:
        return [(name, self._things[name]) for name in self.names()]

    def __contains__(self, name: str) -> bool:
        self._find()
        return name in self._things

    def __getitem__(self, name: str) -> T:
        self._find()
        if name not in self._things:
            known = ", ".join(sorted(self._things))
            raise InputError(f"{self.kind} {name!r} is unknown; choose one of: {known}.{nearest(name, self._things)}")
        return self._things[name]

    def _find(self) -> None:
        if self._found:
            return
        # other threads wait for the whole table; one of its own files may look up what there is so far
        with self._lock:
            if self._found or self._finding:
                return
            self._finding = True
            try:
                package = importlib.import_module(self.package)
                for module in pkgutil.iter_modules(package.__path__):
                    importlib.import_module(f"{self.package}.{module.name}")
                self._found = True
            finally:
                self._finding = False
