"""A run folder's files have one name each."""

from pathlib import Path

import pytest

from lorasmith.errors import RecipeError
from lorasmith.training import RunFolder


def test_the_names_are_those_of_the_design():
    folder = RunFolder("runs/a")
    listed = (folder.recipe, folder.plan, folder.metrics, folder.adapter, folder.checkpoints, folder.evaluation)
    assert [path.relative_to("runs/a").as_posix() for path in (*listed, folder.report)] == [
        "recipe.yaml",
        "plan.json",
        "metrics.jsonl",
        "adapter",
        "checkpoints",
        "evaluation.json",
        "report.html",
    ]
    assert not Path("runs/a").exists()


def test_a_recipe_alone_is_no_run_but_metrics_are(tmp_path):
    folder = RunFolder(tmp_path)
    folder.recipe.write_text("task: causal\n")
    folder.refuse_used()
    folder.metrics.write_text("")
    with pytest.raises(RecipeError, match="already holds a run"):
        folder.refuse_used()
