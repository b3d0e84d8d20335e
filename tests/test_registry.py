"""The tables that find their package's files."""

import sys
from concurrent.futures import ThreadPoolExecutor

from lorasmith.registry import Registry


def test_threads_that_look_up_first_at_once_all_see_the_whole_table(tmp_path, monkeypatch):
    package = tmp_path / "slow_things"
    package.mkdir()
    (package / "__init__.py").write_text("")
    for name in ("one", "two"):
        text = f"import time\nfrom lorasmith_slow_table import things\ntime.sleep(0.2)\nthings.add({name!r}, 1)\n"
        (package / f"{name}.py").write_text(text)
    (tmp_path / "lorasmith_slow_table.py").write_text(
        "from lorasmith.registry import Registry\nthings = Registry('thing', 'slow_things')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    from lorasmith_slow_table import things

    assert isinstance(things, Registry)
    try:
        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(lambda _: things.names(), range(4))) == [["one", "two"]] * 4
    finally:
        for name in [name for name in sys.modules if name.startswith(("slow_things", "lorasmith_slow_table"))]:
            del sys.modules[name]
