"""Files are written whole or not at all, and a disk that refuses one is named."""

import resource
from collections.abc import Iterator

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lorasmith.atomic import atomic_folder, atomic_path
from lorasmith.errors import WriteError


@pytest.fixture
def small_files() -> Iterator[None]:
    """The system refuses files beyond 64 KiB, as a full disk refuses them."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_disk_that_refuses_tensors_is_named_and_nothing_is_left(kind, tmp_path, small_files):
    target, tensors = tmp_path / "kept", {"a": torch.zeros(1 << 16)}
    with pytest.raises(WriteError, match="kept could not be written: File too large"):
        if kind == "file":
            with atomic_path(target) as path:
                save_file(tensors, path)
        else:
            with atomic_folder(target) as folder:
                save_file(tensors, folder / "a.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_source_that_cannot_be_read_is_not_called_a_disk_that_refuses(tmp_path):
    (tmp_path / "source").write_bytes(b"no tensors")
    with pytest.raises(SafetensorError), atomic_folder(tmp_path / "target"):
        load_file(tmp_path / "source")
