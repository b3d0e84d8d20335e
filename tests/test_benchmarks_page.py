"""docs/benchmarks.md against the disk: its table is what the committed results say, and it names every benchmark."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = REPOSITORY / "docs" / "benchmarks.md"
BEGIN, END = "<!-- table: python benchmarks/table.py --write -->", "<!-- end of the table -->"


def test_the_table_is_the_one_of_the_committed_results():
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "table.py")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    printed = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    written = PAGE.read_text().split(BEGIN)[1].split(END)[0]
    assert written.strip() == printed.strip(), "run python benchmarks/table.py --write"


def test_the_page_names_every_benchmark():
    names = {path.name for path in (REPOSITORY / "benchmarks").glob("bench_*.py")}
    missing = {name for name in names if f"benchmarks/{name}" not in PAGE.read_text()}
    assert not missing, f"docs/benchmarks.md lacks {sorted(missing)}"


def test_the_errors_of_starts_are_those_of_the_committed_results():
    page = (REPOSITORY / "docs" / "starts.md").read_text()
    rows = json.loads((REPOSITORY / "benchmarks" / "results" / "quantization_error.json").read_text())["rows"]
    lines = re.findall(r"^\| `(\w+)` \| (.*) \|$", page.split("quantization_error.py -->")[1], re.MULTILINE)
    shown = [(form, cell) for form, cells in lines for cell in cells.split(" | ")]
    assert shown == [(row["format"], f"{row['error']:.3f}") for row in rows]
