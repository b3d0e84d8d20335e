"""Fixtures that the whole test suite shares."""

import gc
import os
from pathlib import Path

import pytest
import torch

# read when triton is imported: without a GPU its kernels are tested in its interpreter
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that no process waits for another at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """Spare every later garbage collection the millions of objects of what the tests imported."""
    gc.collect()
    gc.freeze()


def shared_folder() -> Path:
    """Where real weights and data lie: LORASMITH_SHARED, or shared/data beside the checkout."""
    return Path(os.environ.get("LORASMITH_SHARED", REPOSITORY.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real weights and data; the test is skipped where it is absent."""
    folder = shared_folder()
    if not folder.is_dir():
        pytest.skip(f"real models and data are absent: {folder} does not exist; set LORASMITH_SHARED")
    return folder
