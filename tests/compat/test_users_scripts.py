"""Scripts as PEFT's users write them say the same with the one import line changed."""

import contextlib
import io
import re
import warnings
from pathlib import Path

import pytest

pytest.importorskip("peft")

SCRIPTS = sorted(Path(__file__).with_name("users").glob("*.py"))
IMPORT = "from peft import "


def lines_of(text, folder, monkeypatch):
    """What a script prints, run in folder with nothing left over from another run."""
    folder.mkdir()
    monkeypatch.chdir(folder)
    printed = io.StringIO()
    # the scripts are judged by what they print; PEFT's and transformers' warnings are not ours
    with contextlib.redirect_stdout(printed), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(text, "script", "exec"), {"__name__": "__main__"})
    return printed.getvalue().splitlines()


def told(line):
    """The words of a line, and its numbers."""
    parts = re.findall(r"-?\d+(?:\.\d+(?:e-?\d+)?)?|[^\d\s-]+", line)
    numbers = [float(part) for part in parts if re.match(r"-?\d", part)]
    return [part for part in parts if not re.match(r"-?\d", part)], numbers


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_says_the_same_with_its_import_line_changed(script, tmp_path, monkeypatch):
    text = script.read_text()
    assert text.count(IMPORT) == 1
    theirs = lines_of(text, tmp_path / "peft", monkeypatch)
    ours = lines_of(text.replace(IMPORT, "from lorasmith import "), tmp_path / "lorasmith", monkeypatch)
    assert len(ours) == len(theirs) > 3
    for mine, other in zip(ours, theirs):
        words, numbers = told(mine)
        assert words == told(other)[0]
        # a few steps of an optimizer in float32, summed in another order
        assert numbers == pytest.approx(told(other)[1], abs=2e-5, rel=1e-5), (mine, other)
