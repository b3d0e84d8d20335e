"""JSON that every reader takes."""

import json
import math

from lorasmith.json_text import json_text


def test_what_is_not_finite_is_null_wherever_it_stands():
    content = {"loss": math.nan, "reach": [1.5, -math.inf], "after": {"perplexity": {"value": math.inf, "n": 4}}}
    read = json.loads(json_text(content), parse_constant=lambda name: f"invalid: {name}")
    assert read == {"loss": None, "reach": [1.5, None], "after": {"perplexity": {"value": None, "n": 4}}}


def test_everything_else_is_written_as_json_writes_it():
    content = {"steps": 3, "names": ["\N{LATIN SMALL LETTER E WITH ACUTE}", None, True], "loss": 0.1}
    assert json_text(content, indent=2, ensure_ascii=False) == json.dumps(content, indent=2, ensure_ascii=False)
