"""What the documents state, held against the code."""

import contextlib
import dataclasses
import io
import json
import re
import runpy
import types
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from lorasmith.attach import attach
from lorasmith.data.record import Record
from lorasmith.data.shapes import SHAPES, shape_of
from lorasmith.methods import methods
from lorasmith.methods.adalora.config import UNREAD
from lorasmith.methods.lora.config import _VARIANTS
from lorasmith.recipes.method_section import _FILLED_IN, method_config, resolve_method
from lorasmith.recipes.recipe import Recipe
from tiny import llama

# fields that are refused at any value but their default
NOT_BUILT = {"lora": _VARIANTS, "adalora": UNREAD}
DOCS = Path(__file__).resolve().parents[2] / "docs"


def read(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def shown(value: Any) -> str:
    """A default as YAML writes it."""
    return f"`{json.dumps(value)}`"


def section_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation if issubclass(annotation, BaseModel) else None
    return next((found for found in map(section_in, get_args(annotation)) if found), None)


def recipe_rows(section: type[BaseModel] = Recipe, prefix: str = "") -> list[str]:
    """A table row for every field of a recipe, those of a section under its name."""
    rows = []
    for name, field in section.model_fields.items():
        inner = section_in(field.annotation)
        said = (field.description or "").replace("|", "\\|")
        if inner is not None and field.is_required():
            default = "required"
        elif inner is not None:
            default = "see below" if isinstance(field.default, BaseModel) else shown(field.default)
        else:
            default = "required" if field.is_required() else shown(field.default)
        listed = "[]" if inner is not None and "list" in str(field.annotation) else ""
        rows.append(f"| `{prefix}{name}` | {default} | {said} |")
        # the sources of validation are those of train
        if inner is not None and name != "validation":
            rows += recipe_rows(inner, f"{prefix}{name}{listed}.")
    return rows


def default_of(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def method_rows() -> list[str]:
    """A table row for every field of every method; variants that are not built are left out."""
    rows = []
    for name in sorted(methods.names()):
        config = methods[name].config_class
        for field in dataclasses.fields(config):
            if field.name in {*_FILLED_IN, *config.NEVER_READ, *NOT_BUILT.get(name, ())}:
                continue
            # a recipe may place a method elsewhere than its config does
            placed = methods[name].recipe_targets if field.name == "target_modules" else None
            default = placed or default_of(field)
            rows.append(f"| `{name}` | `{field.name}` | {shown(default)} |")
    return rows


@pytest.mark.parametrize(
    "section", re.findall(r"^method: (\{.*\})", (DOCS / "recipes.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
)
def test_the_method_sections_that_recipes_md_shows_are_right_and_attach(section):
    resolved = resolve_method(yaml.safe_load(section))
    assert attach(llama(num_hidden_layers=4), method_config(resolved, "causal", "a base")).trainable()


def test_recipes_md_lists_every_field_with_its_default_and_no_other():
    rows = [line for line in read("recipes.md").splitlines() if line.startswith("| `")]
    assert rows == recipe_rows() + method_rows()


@pytest.mark.parametrize("name", SHAPES)
def test_the_example_record_of_each_shape_is_recognised_as_it(name):
    example = re.search(rf"^### {re.escape(name)}\n+```json\n(.*?)\n```", read("data.md"), re.MULTILINE | re.DOTALL)
    record = Record(json.loads(example[1]), "data.md")
    task = "classification" if name == "text+label" else "causal"
    shape = shape_of([record], None, task)
    assert shape.name == name
    shape.convert(record)


def test_the_bits_a_weight_are_what_the_shown_script_prints(tmp_path):
    script, output = re.search(r"```python\n(.*?)```\s+```text\n(.*?)```", read("quantization.md"), re.DOTALL).groups()
    (tmp_path / "bits.py").write_text(script)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        runpy.run_path(str(tmp_path / "bits.py"))
    stated, found = (re.findall(r"(.*bits, files add) (\d+) bytes", text) for text in (output, printed.getvalue()))
    assert [line for line, _ in stated] == [line for line, _ in found]
    # the description holds the mean of the scales in as many digits as it has
    assert all(abs(int(one[1]) - int(other[1])) <= 16 for one, other in zip(stated, found, strict=True))


def test_every_deliberate_difference_to_peft_names_a_test_that_is_there():
    rows = re.findall(r"^\| (?!Where|---)(.*) \|$", read("migrating-from-peft.md"), re.MULTILINE)
    assert len(rows) > 20
    for row in rows:
        named = re.fullmatch(r"`(.*\.py)::(\w+)`", row.split(" | ")[-1])
        assert named, row
        text = (DOCS.parent / "tests" / named[1]).read_text(encoding="utf-8")
        assert f"\ndef {named[2]}(" in text, row


def test_methods_md_has_a_row_for_every_method():
    rows = re.findall(r"^\| (`.*?) \|", read("methods.md").partition("## Compared")[0], re.MULTILINE)
    assert set(methods.names()) <= set(re.findall(r"`(\w+)`", " ".join(rows)))
