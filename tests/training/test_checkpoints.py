"""Checkpoints are whole, complete and few."""

import errno
import random

import numpy as np
import pytest
import torch

from lorasmith.errors import RunError, WriteError
from lorasmith.training import checkpoint, random_state
from lorasmith.training.optimizers import build
from lorasmith.training.position import Interval, Position
from lorasmith.training.settings import TrainingSettings


@pytest.fixture
def parameters(model):
    return checkpoint.trainable_parameters(model)


@pytest.fixture
def save(parameters, tmp_path):
    optimizer = build(parameters, TrainingSettings())

    def at(step):
        return checkpoint.save(tmp_path, parameters, optimizer, Position(step=step), {"epoch": 0, "index": step})

    return at


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_every_random_generator_comes_back():
    random_state.seed_all(3)
    tensors, numbers = random_state.captured_tensors(), random_state.captured_numbers()

    def draw():
        return random.gauss(0, 1), random.random(), np.random.standard_normal(3).tolist(), torch.randn(3).tolist()

    first = draw()
    assert draw() != first
    random_state.restore_tensors(tensors)
    random_state.restore_numbers(numbers)
    assert draw() == first


def test_a_position_comes_back_to_the_last_bit():
    position = Position(7, 0.1 + 0.2, 4, 2, 1 / 3, Interval(1e-17, 5, 6, 0.7))
    assert Position.from_json(position.to_json()) == position


def test_nothing_is_pickled(save):
    assert names(save(1).path) == [
        "optimizer.safetensors",
        "random.safetensors",
        "state.json",
        "trainable.safetensors",
    ]


def test_the_newest_the_best_and_no_other_are_kept(save, tmp_path):
    for step in (2, 4, 6, 8, 1_000_000):
        save(step)
    checkpoint.prune(tmp_path, keep=2, best_step=4)
    assert names(tmp_path) == ["step-000004", "step-000008", "step-1000000"]
    assert checkpoint.latest(tmp_path).step == 1_000_000


@pytest.mark.parametrize("file", ["state.json", "optimizer.safetensors", "random.safetensors", "trainable.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_checkpoint_with_a_damaged_file_is_none(file, damage, save, tmp_path):
    save(2)
    path = save(4).path / file
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    assert checkpoint.latest(tmp_path).step == 2


def test_a_folder_without_checkpoints_has_none(tmp_path):
    assert checkpoint.latest(tmp_path) is None
    assert checkpoint.latest(tmp_path / "absent") is None


def test_leftovers_of_a_kill_are_swept(save, tmp_path):
    save(2)
    (tmp_path / ".step-000004.abc.tmp").mkdir()
    checkpoint.sweep(tmp_path)
    assert names(tmp_path) == ["step-000002"]


def test_a_full_disk_is_named_and_leaves_the_older_checkpoint(save, tmp_path, monkeypatch):
    save(2)

    def full(tensors, path):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(WriteError, match="step-000004 could not be written: the disk is full"):
        save(4)
    assert names(tmp_path) == ["step-000002"]
    assert checkpoint.latest(tmp_path).step == 2


def test_tensors_that_do_not_fit_are_named_before_any_is_loaded(save, parameters):
    found = save(2)
    before = parameters["lm_head.weight"].detach().clone()
    others = parameters | {"extra": torch.nn.Parameter(torch.zeros(1))}
    with pytest.raises(RunError, match=r"extra is trained but not in it; resume with the run's own recipe"):
        checkpoint.load_trainable_(found, others)
    fewer = {name: value for name, value in parameters.items() if name != "lm_head.weight"}
    with pytest.raises(RunError, match=r"lm_head.weight is in the checkpoint but not trained"):
        checkpoint.load_trainable_(found, fewer)
    reshaped = parameters | {"model.norm.weight": torch.nn.Parameter(torch.zeros(3))}
    with torch.no_grad():
        parameters["lm_head.weight"].add_(1)
    with pytest.raises(RunError, match=r"model.norm.weight is \(32,\) torch.float32 there and \(3,\)"):
        checkpoint.load_trainable_(found, reshaped)
    assert torch.equal(parameters["lm_head.weight"], before + 1)
