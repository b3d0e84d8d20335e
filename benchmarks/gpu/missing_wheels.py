"""Print the wheels of a folder whose distribution this interpreter does not have, for run.sh to install.

python benchmarks/gpu/missing_wheels.py FOLDER
"""

import re
import sys
from importlib.metadata import distributions
from pathlib import Path


def normal(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def missing(folder: Path) -> list[Path]:
    """Wheels of folder (none where it does not exist) that are not installed, in order of name."""
    here = {normal(each.metadata["Name"]) for each in distributions() if each.metadata["Name"]}
    return [wheel for wheel in sorted(folder.glob("*.whl")) if normal(wheel.name.split("-")[0]) not in here]


if __name__ == "__main__":
    print(*missing(Path(sys.argv[1])))
