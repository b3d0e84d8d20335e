"""A run that was killed and resumed is bit-equal to one that was not."""

import dataclasses
import json
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lorasmith

SCRIPT = Path(__file__).with_name("killed_run.py")
TIMED = ("time", "tokens_per_second", "memory_bytes", "memory_peak_bytes")


@pytest.fixture(scope="module")
def script():
    """The script's names; one thread, as in the processes that are killed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield runpy.run_path(str(SCRIPT))
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def uninterrupted(script, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    return script["train"](folder, resume=False), metrics(folder)


def metrics(folder):
    """Lines of metrics.jsonl without what depends on time."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMED} for line in lines]


def killed(folder: Path, moment: str) -> None:
    # the very package that runs here: the source tree may lack the kernels that an installed one has
    path = os.pathsep.join([str(Path(lorasmith.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), moment],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "steps_logged"), [("step", 4), ("rename", 6), ("second", 3)])
def test_a_killed_run_resumes_bit_equal(moment, steps_logged, script, uninterrupted, tmp_path):
    killed(tmp_path, moment)
    assert [line["step"] for line in metrics(tmp_path) if "loss" in line] == list(range(1, steps_logged + 1))
    tensors = script["train"](tmp_path, resume=True)
    wanted, wanted_metrics = uninterrupted
    assert tensors.keys() == wanted.keys()
    assert all(torch.equal(tensors[name], wanted[name]) for name in wanted)
    assert metrics(tmp_path) == wanted_metrics
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_the_run_is_one_where_a_lost_state_would_show(script, uninterrupted):
    tensors, lines = uninterrupted
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == len(set(losses)) == 8
    assert [line["step"] for line in lines if "eval_loss" in line] == [3, 6, 8]
    assert all(tensor.abs().sum() > 0 for tensor in tensors.values())


def test_a_run_that_lost_its_random_state_is_not_bit_equal(script, uninterrupted, tmp_path, monkeypatch):
    settings = dataclasses.replace(script["SETTINGS"], max_steps=8)
    short = dataclasses.replace(settings, max_steps=4)
    script["train"](tmp_path, resume=False, settings=short)
    monkeypatch.setattr("lorasmith.training.random_state.restore_tensors", lambda states: None)
    tensors = script["train"](tmp_path, resume=True, settings=settings)
    wanted, _ = uninterrupted
    assert not all(torch.equal(tensors[name], wanted[name]) for name in wanted)


def test_resuming_a_finished_run_changes_nothing(script, uninterrupted, tmp_path):
    first = script["train"](tmp_path, resume=False)
    before = (tmp_path / "metrics.jsonl").read_text()
    again = script["train"](tmp_path, resume=True)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_a_damaged_newest_checkpoint_is_passed_over(script, uninterrupted, tmp_path, caplog):
    script["train"](tmp_path, resume=False)
    newest = tmp_path / "checkpoints" / "step-000008" / "trainable.safetensors"
    data = bytearray(newest.read_bytes())
    data[-1] ^= 1
    newest.write_bytes(data)
    tensors = script["train"](tmp_path, resume=True)
    assert "step-000008 is not a whole checkpoint" in caplog.text
    wanted, wanted_metrics = uninterrupted
    assert all(torch.equal(tensors[name], wanted[name]) for name in wanted)
    assert metrics(tmp_path) == wanted_metrics
