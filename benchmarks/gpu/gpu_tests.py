"""The tests of the operations, with Triton's kernels on the device; what fails is named, also where time runs out."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import told_tests
from measuring import place, tell

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
# attention's, the streams' and the graphs' own tests, where this version has them, beside all operations
ON_DEVICE = (
    "tests/ops",
    "tests/models/test_segment_attention.py",
    "tests/models/test_offloaded_inputs.py",
    "tests/decoding/test_on_gpu.py",
)
# kernels are made as they run here, and need no compiling for a GPU that is absent
COMPILES = "tests/ops/test_gpu.py::test_every_kernel_compiles_to_machine_code_of_an_h200"
SMOKE = ("tests/ops/test_gpu.py", "-k", "names_the_way_out")


def chosen(tiny: bool) -> list[str]:
    if tiny:
        return list(SMOKE)
    paths = [path for path in ON_DEVICE if (REPOSITORY / path).exists()]
    # more would wait for one another: each makes kernels, on cores that the parts beside this one use too
    processes = str(max(1, min(10, (os.cpu_count() or 1) - 4)))
    spread = ["-n", processes, "--dist", "worksteal"] if importlib.util.find_spec("xdist") else []
    return [*paths, *spread, "--deselect", COMPILES]


def run(tests: list[str], told: Path, seconds: float | None) -> int | None:
    """pytest's exit code; None where it was ended after seconds."""
    paths = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    # every shape of a test would else be measured in every tile; the steps beside this part measure
    environment = {"LORASMITH_CHOICES": "fixed", **os.environ, "PYTHONPATH": paths, told_tests.FILE: str(told)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "told_tests", *tests]
    process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=sys.stderr)
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return None


def outcomes(told: Path) -> dict[str, Any]:
    """Counts of what the tests told, and those that failed."""
    rows = [json.loads(line) for line in told.read_text().splitlines()] if told.exists() else []
    counts = Counter(row["outcome"] for row in rows)
    failures = [f"{row['test']}: {row['why']}" for row in rows if row["outcome"] == "failed"]
    return {**{name: counts[name] for name in ("passed", "failed", "skipped")}, "failures": failures[:40]}


def main() -> None:
    where = place(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "told.jsonl"
        code = run(chosen(where.tiny), told, None if where.left == float("inf") else max(1.0, where.left))
        found = outcomes(told)
    # pytest ends with 1 where tests failed, and with more where it could not run them
    trouble = code is not None and code > 1
    tell("tests", **found, finished=code is not None, **({"error": f"pytest ended with {code}"} if trouble else {}))


if __name__ == "__main__":
    main()
