"""A run whose memory cannot be predicted says so, and why."""

import pytest

from lorasmith.errors import PlanError
from lorasmith.recipes import prepare as module
from lorasmith.recipes.dry_run import dry_run_lines
from lorasmith.recipes.prepare import prepare
from lorasmith.recipes.reading import build_recipe


@pytest.fixture
def unplannable(llama, stories, monkeypatch):
    def refuse(model, settings):
        raise PlanError("the memory of this one cannot be predicted")

    monkeypatch.setattr(module, "plan", refuse)
    return build_recipe({"model": str(llama), "data": {"train": str(stories)}}, "a test")


def test_why_no_memory_is_predicted_is_a_finding(unplannable):
    prepared = prepare(unplannable)
    assert prepared.plan is None
    assert "note: the memory of this one cannot be predicted" in map(str, prepared.findings)


def test_the_dry_run_points_to_it(unplannable):
    lines = list(dry_run_lines(unplannable))
    assert lines.index("memory of a training step: not predicted; a note below says why") < lines.index(
        "note: the memory of this one cannot be predicted"
    )
