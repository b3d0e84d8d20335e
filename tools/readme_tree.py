"""Rewrite README's map of the project from the first line of each file's docstring or header comment."""

import ast
import re
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
ROOTS = ("src/lorasmith/", "csrc/")


def headline(path: Path) -> str:
    """What a file says of itself: the first sentence of its docstring, or of its first comment."""
    text = path.read_text(encoding="utf-8")
    if path.suffix in (".py", ".pyi"):
        said = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    else:
        comment = re.search(r"^\s*(?://|/\*+)\s*(.+)$", text, re.MULTILINE)
        said = comment[1] if comment else ""
    return said.strip().removesuffix("*/").strip().rstrip(".")


def tree() -> str:
    """The map as text: two spaces a level, folders end in a slash."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *ROOTS]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.split()
    files = sorted(Path(name) for name in listed if name.endswith((".py", ".pyi", ".cpp", ".h")))
    lines: list[str] = []
    for root in ROOTS:
        lines += _folder(Path(root), files, 0)
    return "\n".join(line.rstrip() for line in lines)


def _folder(folder: Path, files: list[Path], level: int) -> list[str]:
    indent = "  " * level
    package = folder / "__init__.py"
    said = headline(REPOSITORY / package) if package in files else ""
    name = f"{folder}/" if level == 0 else f"{folder.name}/"
    lines = [f"{indent}{name:30s} {said}"]
    here = [file for file in files if file.parent == folder and file.name != "__init__.py"]
    lines += [f"{indent}  {file.name:28s} {headline(REPOSITORY / file)}" for file in here]
    inner = sorted({folder / file.relative_to(folder).parts[0] for file in files if _inside(file, folder)})
    for child in inner:
        lines += _folder(child, files, level + 1)
    return lines


def _inside(file: Path, folder: Path) -> bool:
    return file.is_relative_to(folder) and len(file.relative_to(folder).parts) > 1


def main() -> None:
    """Rewrite the map in README.md."""
    readme = REPOSITORY / "README.md"
    text = readme.read_text(encoding="utf-8")
    block = re.compile(r"(```text\n)src/lorasmith/.*?(```)", re.DOTALL)
    assert block.search(text), "README.md has no ```text block that starts with src/lorasmith/"
    readme.write_text(block.sub(lambda found: f"{found[1]}{tree()}\n{found[2]}", text), encoding="utf-8")


if __name__ == "__main__":
    main()
