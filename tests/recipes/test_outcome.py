"""What a run leaves besides its adapter."""

import json
import math

import pytest

from lorasmith.recipes.outcome import Outcome


def test_scores_that_are_not_finite_are_null_in_the_file_and_told_in_words(tmp_path):
    path = tmp_path / "evaluation.json"
    hopeless = {"value": math.inf, "low": 3.5, "high": math.inf, "n": 4}
    outcome = Outcome(before={"perplexity": hopeless}, after={"perplexity": hopeless | {"value": 5.0}})
    outcome.write(path)
    json.loads(path.read_text(), parse_constant=pytest.fail)
    again = Outcome.read(path)
    assert again.lines() == outcome.lines() == ["perplexity: not finite -> 5.0000 (3.5000 to not finite)"]
