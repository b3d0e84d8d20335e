"""The package's own names: all there, and none imported before it is asked for."""

import subprocess
import sys

import pytest

import lorasmith


def test_every_name_is_there():
    assert len(lorasmith.__all__) > 80
    assert set(lorasmith.__all__) <= set(dir(lorasmith))
    missing = [name for name in lorasmith.__all__ if getattr(lorasmith, name, None) is None]
    assert not missing


def test_what_nobody_asks_for_is_not_imported():
    code = "import sys, lorasmith; print([name for name in ('torch', 'transformers', 'typer') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("imported", ["import lorasmith.ops", "from lorasmith import ops"])
def test_the_ops_need_neither_transformers_nor_a_compiler(imported):
    code = f"import sys; {imported}; print({{'transformers', 'torch._dynamo'}} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_a_name_that_is_nowhere_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'LoraConfg'"):
        getattr(lorasmith, "LoraConfg")  # noqa: B009
    assert not hasattr(lorasmith, "_anything")
