"""The blockwise kernels one by one: the reference, then each instruction set of the extension."""

from collections.abc import Iterator
from types import ModuleType

import pytest

from lorasmith.ops import native
from lorasmith.ops.blockwise import cpu, reference

NATIVE_LEVELS = ("portable", "avx2", "avx512")


def forced(level: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """blockwise/cpu.py with that instruction set; the test is skipped where it cannot run."""
    extension = native.extension()
    if extension is None:
        pytest.skip(f"no extension: {native.absence()}")
    if level not in extension.levels():
        pytest.skip(f"this processor has no {level}")
    monkeypatch.setenv("LORASMITH_CPU_LEVEL", level)
    native.level.cache_clear()
    return cpu


@pytest.fixture(params=NATIVE_LEVELS)
def native_kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The native kernels with each instruction set in turn."""
    yield forced(request.param, monkeypatch)
    native.level.cache_clear()


@pytest.fixture(params=("reference", *NATIVE_LEVELS))
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The reference and the native kernels; one module after the other with the same functions."""
    yield reference if request.param == "reference" else forced(request.param, monkeypatch)
    native.level.cache_clear()
