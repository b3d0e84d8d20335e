"""A pytest plugin: each test's outcome goes into the file that TOLD_TESTS names as soon as it is known, a line of JSON.

So what a run told that was ended is there. Only the process that the others report to writes.
"""

import json
import os
from pathlib import Path
from typing import Any

FILE = "TOLD_TESTS"


class Teller:
    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)

    def pytest_runtest_logreport(self, report: Any) -> None:
        # of what happens around a test only trouble counts, and being skipped
        if report.when == "call" or report.outcome != "passed":
            where = report.longrepr.reprcrash.message if report.failed and _crashed(report) else str(report.longrepr)
            told = {"test": report.nodeid, "outcome": report.outcome, "why": where[:300] if report.failed else ""}
            print(json.dumps(told), file=self._file)


def pytest_configure(config: Any) -> None:
    if "workerinput" not in vars(config):
        config.pluginmanager.register(Teller(Path(os.environ[FILE])))


def _crashed(report: Any) -> bool:
    return getattr(report.longrepr, "reprcrash", None) is not None
