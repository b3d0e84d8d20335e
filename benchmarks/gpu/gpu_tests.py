"""The tests of the operations, with Triton's kernels on the device; what fails is named."""

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from measuring import place, tell

REPOSITORY = Path(__file__).resolve().parents[2]
# attention's and the streams' own tests, where this version has them, beside all operations
ON_DEVICE = ("tests/ops", "tests/models/test_segment_attention.py", "tests/models/test_offloaded_inputs.py")
# kernels are made as they run here, and need no compiling for a GPU that is absent
COMPILES = "tests/ops/test_gpu.py::test_every_kernel_compiles_to_machine_code_of_an_h200"
SMOKE = ("tests/ops/test_gpu.py", "-k", "names_the_way_out")


def chosen(tiny: bool) -> list[str]:
    if tiny:
        return list(SMOKE)
    paths = [path for path in ON_DEVICE if (REPOSITORY / path).exists()]
    spread = ["-n", "8", "--dist", "loadfile"] if importlib.util.find_spec("xdist") else []
    return [*paths, *spread, "--deselect", COMPILES]


def main() -> None:
    where = place(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        command = [sys.executable, "-m", "pytest", *chosen(where.tiny), *options]
        done = subprocess.run(command, cwd=REPOSITORY, stdout=sys.stderr, check=False)
        if not report.exists():
            tell("tests", error=f"pytest ended with {done.returncode} and no report")
            return
        cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = sum(case.find("skipped") is not None for case in cases)
    counts = {"passed": len(cases) - len(failed) - skipped, "failed": len(failed), "skipped": skipped}
    tell("tests", **counts, failures=[_failure(case) for case in failed[:40]])


def _failure(case: ElementTree.Element) -> str:
    found = case.find("failure")
    found = case.find("error") if found is None else found
    message = "" if found is None else (found.get("message") or "")
    return f"{case.get('classname')}::{case.get('name')}: {message[:300]}"


if __name__ == "__main__":
    main()
