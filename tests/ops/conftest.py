"""Kernels one by one: the reference, each instruction set of the extension, Triton's."""

from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

from gpu_kernels import OnDevice, triton_kernels
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


def blockwise_kernels(kind: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType | OnDevice:
    """The blockwise ops of Triton, or of an instruction set."""
    return triton_kernels("blockwise") if kind == "triton" else forced(kind, monkeypatch)


@pytest.fixture(params=NATIVE_LEVELS)
def native_kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The CPU's kernels with each instruction set in turn."""
    yield forced(request.param, monkeypatch)
    native.level.cache_clear()


@pytest.fixture(params=(*NATIVE_LEVELS, "triton"))
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each instruction set in turn, which the CPU's kernels then use, and triton, which a test calls itself."""
    if request.param != "triton":
        forced(request.param, monkeypatch)
    yield request.param
    native.level.cache_clear()


@pytest.fixture(params=(*NATIVE_LEVELS, "triton"))
def fast_kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType | OnDevice]:
    """All but the reference."""
    yield blockwise_kernels(request.param, monkeypatch)
    native.level.cache_clear()


@pytest.fixture(params=("reference", *NATIVE_LEVELS, "triton"))
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType | OnDevice]:
    """Every implementation; one module after the other with the same functions."""
    yield reference if request.param == "reference" else blockwise_kernels(request.param, monkeypatch)
    native.level.cache_clear()


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """New tensors without values hold NaN, so that what a kernel leaves out shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
