"""The allocator of a GPU is told to grow its segments, unless somebody told it what to do before."""

import pytest
import torch

from lorasmith.ops.cuda_allocation import grow_segments


@pytest.fixture
def said(monkeypatch):
    """What the allocator is told, on a machine with a GPU and nothing said so far."""
    said: list[str] = []
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    # torch 2.11 has no such name
    monkeypatch.setattr(torch._C, "_accelerator_getAllocatorSettings", lambda: "".join(said), raising=False)
    # raising: this is a name of torch's own, which a new version may move
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", said.append)
    return said


def test_segments_grow_where_nothing_was_said(said):
    assert grow_segments()
    assert said == ["expandable_segments:True"]


def test_segments_grow_under_a_torch_that_does_not_tell_what_was_said(said, monkeypatch):
    monkeypatch.delattr(torch._C, "_accelerator_getAllocatorSettings")
    assert grow_segments()
    assert said == ["expandable_segments:True"]


def test_without_a_gpu_nothing_is_said(said, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not grow_segments()
    assert said == []


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_what_the_user_chose_stays(said, monkeypatch, name):
    monkeypatch.setenv(name, "max_split_size_mb:128")
    assert not grow_segments()
    assert said == []


def test_what_this_process_chose_stays(said):
    said.append("garbage_collection_threshold:0.8")
    assert not grow_segments()
    assert said == ["garbage_collection_threshold:0.8"]
