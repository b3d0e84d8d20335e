"""README's map of the project, compared to the disk: one line a file, nothing missing, nothing that is gone."""

import re
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
README = REPOSITORY / "README.md"
MAPPED = ("src/lorasmith/", "csrc/")


def tree_block() -> list[str]:
    """The lines of README's fenced block that starts with src/lorasmith/."""
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", README.read_text(), flags=re.MULTILINE | re.DOTALL)
    for block in blocks:
        if block.startswith("src/lorasmith/"):
            return [line for line in block.splitlines() if line.strip()]
    raise AssertionError("README.md has no fenced block that starts with the line src/lorasmith/")


def listed() -> dict[str, str]:
    """Path -> what the tree says of it; two spaces a level, a folder ends in '/', its own line says what it holds."""
    paths: dict[str, str] = {}
    stack: list[str] = []
    for line in tree_block():
        head, _, rest = line.strip().partition(" ")
        level = (len(line) - len(line.lstrip())) // 2
        stack[level:] = [head]
        path = "".join(stack)
        assert path not in paths, f"README's tree lists {path} twice"
        paths[path] = rest.strip()
    return paths


def on_disk() -> set[str]:
    answer = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *MAPPED],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    if answer.returncode:
        pytest.skip("not a git checkout, so the files that belong to the project are not known")
    return {path for path in answer.stdout.splitlines() if (REPOSITORY / path).exists()}


@pytest.fixture(scope="module", autouse=True)
def _readme():
    if not README.exists():
        pytest.skip("README.md is not written yet")


def test_the_tree_lists_every_source_file():
    code = {path for path in on_disk() if path.endswith((".py", ".cpp", ".h")) and not path.endswith("__init__.py")}
    missing = code - listed().keys()
    assert not missing, f"README's tree lacks {sorted(missing)}"


def test_the_tree_lists_nothing_that_is_gone():
    gone = {path for path in listed() if not (REPOSITORY / path).exists()}
    assert not gone, f"README's tree names files that are not there: {sorted(gone)}"


def test_every_line_of_the_tree_says_what_the_file_is():
    silent = [path for path, says in listed().items() if not says and not path.endswith("/")]
    assert not silent, f"README's tree says nothing of {silent}"
