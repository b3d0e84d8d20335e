"""A module is imported as soon as another was, whoever imports that and however."""

import subprocess
import sys
import textwrap

import pytest


@pytest.fixture
def printed(tmp_path):
    """What a fresh interpreter prints that finds two modules, first and then; each says when it runs."""
    (tmp_path / "first.py").write_text("print('first')\nvalue = 1")
    (tmp_path / "then.py").write_text("from first import value\nprint('then', value)")

    def run(code):
        code = (
            f"import sys; sys.path[:0] = [{str(tmp_path)!r}]\nfrom lorasmith.import_after import import_after\n" + code
        )
        done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
        return done.stdout.split("\n")[:-1]

    return run


def test_it_follows_the_first_import(printed):
    code = "import_after('first', 'then')\nimport_after('first', 'then')\nprint('before')\nimport first\nimport first"
    assert printed(code) == ["before", "first", "then 1"]


def test_it_is_imported_at_once_where_the_first_is_there(printed):
    assert printed("import first\nimport_after('first', 'then')\nprint('after')") == ["first", "then 1", "after"]


def test_several_may_follow(printed, tmp_path):
    (tmp_path / "third.py").write_text("print('third')")
    code = "import_after('first', 'then')\nimport_after('first', 'third')\nimport first"
    assert printed(code) == ["first", "then 1", "third"]


def test_a_module_that_is_not_there_stays_not_there(printed):
    code = "import_after('absent', 'then')\ntry: import absent\nexcept ImportError as error: print(error)"
    assert printed(code) == ["No module named 'absent'"]
