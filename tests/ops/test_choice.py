"""Choosing between ways to compute the same: measured once, kept on disk, overruled by the environment."""

import json
import math

import pytest
import torch

from lorasmith.errors import DeviceError
from lorasmith.ops import choice
from lorasmith.ops.choice import Choices

CPU = torch.device("cpu")
WAYS = {"slow": lambda: torch.tensor(1), "fast": lambda: torch.tensor(2)}


class Stopwatch:
    """Says that the way whose result is 2 is faster, and counts."""

    def __init__(self):
        self.measured = 0

    def __call__(self, way):
        self.measured += 1
        return 1.0 / float(way())


def test_each_kind_of_call_is_measured_once(tmp_path):
    choices, stopwatch = Choices(tmp_path / "gpu.json"), Stopwatch()
    assert [choices.fastest("a kind", WAYS, stopwatch) for _ in range(3)] == ["fast"] * 3
    assert stopwatch.measured == 2
    choices.fastest("another", WAYS, stopwatch)
    assert stopwatch.measured == 4


def test_what_was_measured_holds_for_the_next_process_and_beside_another(tmp_path):
    path, stopwatch = tmp_path / "folder" / "gpu.json", Stopwatch()
    other = Choices(path)
    Choices(path).fastest("mine", WAYS, stopwatch)
    other.fastest("theirs", WAYS, stopwatch)
    assert json.loads(path.read_text()) == {"mine": "fast", "theirs": "fast"}
    stopwatch.measured = 0
    assert Choices(path).fastest("mine", WAYS, stopwatch) == "fast"
    assert stopwatch.measured == 0


@pytest.mark.parametrize("content", ["{", "[1]", '{"a kind": "gone"}'])
def test_a_broken_or_outdated_file_is_measured_anew(content, tmp_path):
    path = tmp_path / "gpu.json"
    path.write_text(content)
    assert Choices(path).known("a kind", WAYS) is None
    assert Choices(path).fastest("a kind", WAYS, Stopwatch()) == "fast"
    assert json.loads(path.read_text())["a kind"] == "fast"


def test_without_a_place_to_write_the_choice_holds_for_the_process(tmp_path):
    (tmp_path / "file").write_text("")
    choices, stopwatch = Choices(tmp_path / "file" / "gpu.json"), Stopwatch()
    assert [choices.fastest("a kind", WAYS, stopwatch) for _ in range(2)] == ["fast"] * 2
    assert stopwatch.measured == 2


def test_a_way_that_found_no_memory_is_passed_by_in_this_process_and_measured_again_in_the_next(tmp_path):
    path, stopwatch = tmp_path / "gpu.json", Stopwatch()
    choices = Choices(path)
    times = iter([1.0, math.inf])
    assert [choices.fastest("a kind", WAYS, lambda way: next(times)) for _ in range(2)] == ["slow"] * 2
    choices.fastest("another", WAYS, stopwatch)
    assert json.loads(path.read_text()) == {"another": "fast"}


@pytest.mark.parametrize("asked, expected", [("", 1), ("fixed", 1), ("measured", 1), ("fast", 2), ("stacked", 1)])
def test_the_environment_overrules_and_a_cpu_follows_the_rule(asked, expected, monkeypatch):
    monkeypatch.setenv("LORASMITH_CHOICES", asked)
    assert choice.take(WAYS, "slow", "a kind", CPU) == expected


def test_an_unknown_way_is_refused_with_those_that_there_are(monkeypatch):
    monkeypatch.setenv("LORASMITH_CHOICES", "fastest")
    with pytest.raises(DeviceError, match=r"fastest is not known.*'measured', 'fixed', 'fused', 'stacked', 'buffer'"):
        choice.take(WAYS, "slow", "a kind", CPU)


def test_choices_are_kept_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert choice.folder() == tmp_path / "lorasmith" / "choices"
