"""docs/merging.md against the disk: its tables are what the committed results say."""

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = REPOSITORY / "docs" / "merging.md"


def test_the_tables_are_those_of_the_committed_results():
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "merge_table.py")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    printed = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    text = PAGE.read_text()
    written = [
        text.split(f"<!-- {part}: python benchmarks/merge_table.py --write -->")[1].split(f"<!-- end of {part} -->")[0]
        for part in ("layers", "trained", "models")
    ]
    assert "".join(written).split() == printed.split(), "run python benchmarks/merge_table.py --write"
