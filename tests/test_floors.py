"""The floor table of the design, held against the imports that the files really make.

A package imports only from lower floors; files of one package may import each other, without cycles; nothing is
imported inside a function. Three files may import by name at run time: the registry, which finds the files of its
package; what imports one module after another; and the table of commands, so that a command does not wait for what only
another one needs. The package's own names, which __init__.pyi tells the homes of, come when they are asked for.

`doctor` stands below `recipes` because the jobs call it; it never imports them.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "src"
PACKAGE = SOURCE / "lorasmith"

FLOORS = [
    {"errors", "version"},
    {"registry", "atomic", "json_text", "import_after"},
    {"formats"},
    {"ops"},
    {"quantized"},
    {"models"},
    {"methods"},
    {"attach"},
    {"data", "decoding"},
    {"evaluation", "planning"},
    {"training"},
    {"export", "serving", "report"},
    {"doctor"},
    {"recipes"},
    {"search"},
    {"cli", "compat"},
    {"__init__"},
    {"quickstart", "__main__"},
]
IMPORTS_AT_RUN_TIME = {"lorasmith.registry", "lorasmith.import_after", "lorasmith.cli.table"}

# the compiled kernels: a module without Python source
NATIVE = "lorasmith.ops._native"


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def part(module: str) -> str:
    """The package or file directly under lorasmith that module belongs to."""
    names = module.split(".")
    return names[1] if len(names) > 1 else "__init__"


def floor(module: str) -> int:
    for number, parts in enumerate(FLOORS):
        if part(module) in parts:
            return number
    raise AssertionError(f"{module} stands on no floor; give {part(module)!r} one in FLOORS")


def imported_by(tree: ast.AST, module: str) -> Iterator[str]:
    """The names of lorasmith's modules that tree imports, wherever the statement stands."""
    inside = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = inside.split(".")[: len(inside.split(".")) - node.level + 1]
                base = ".".join([*above, *base.split(".")]).rstrip(".")
            for alias in node.names:
                child = f"{base}.{alias.name}"
                yield child if child in MODULES or child == NATIVE else base


@cache
def tree_of(module: str) -> ast.AST:
    return ast.parse(MODULES[module].read_text())


@cache
def edges() -> dict[str, set[str]]:
    graph = {}
    for module in MODULES:
        names = imported_by(tree_of(module), module)
        graph[module] = {name for name in names if name.split(".")[0] == "lorasmith" and name != module}
    return graph


def test_every_file_stands_on_a_floor():
    for module in MODULES:
        floor(module)


def test_a_package_imports_only_from_lower_floors():
    upwards = [
        f"{module}: {name}"
        for module, names in edges().items()
        for name in names
        if part(name) != part(module) and not (name in MODULES and floor(name) < floor(module))
    ]
    assert not upwards, f"imports from their own floor, a higher one, or a module that is not there: {upwards}"


def test_files_import_each_other_without_cycles():
    graph, done = edges(), set()

    def visit(module: str, path: list[str]) -> None:
        if module in path:
            raise AssertionError("an import cycle: " + " -> ".join([*path[path.index(module) :], module]))
        if module in done or module not in graph:
            return
        for name in sorted(graph[module]):
            visit(name, [*path, module])
        done.add(module)

    for module in graph:
        visit(module, [])


def test_nothing_is_imported_inside_a_function():
    hidden = {
        f"{module}: line {node.lineno}"
        for module in MODULES
        for function in ast.walk(tree_of(module))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert not hidden, f"imports hidden in functions: {hidden}"


def test_only_three_files_import_by_name():
    named = {
        module
        for module in MODULES
        for node in ast.walk(tree_of(module))
        if isinstance(node, ast.Call)
        and getattr(node.func, "attr", getattr(node.func, "id", "")) in {"import_module", "__import__"}
    }
    assert named == IMPORTS_AT_RUN_TIME


def test_the_floor_test_sees_relative_and_absolute_imports():
    tree = ast.parse("import lorasmith.atomic\nfrom lorasmith.errors import nearest\nfrom lorasmith import registry")
    assert set(imported_by(tree, "lorasmith.atomic")) == {
        "lorasmith.atomic",
        "lorasmith.errors",
        "lorasmith.registry",
    }
