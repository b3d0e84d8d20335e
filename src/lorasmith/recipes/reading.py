"""Recipes from YAML files and flags, and back to recipe.yaml."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from lorasmith.atomic import write_text
from lorasmith.errors import LorasmithError, RecipeError, nearest
from lorasmith.recipes.recipe import SHORT_FORMS, Recipe

_FLAGS = "the flags"
# what gives a required field on the command line
_FLAG_OF = {"model": "--model", "model.path": "--model", "data": "--data", "data.train": "--data"}


def read_recipe(path: str | Path | None, overrides: Iterable[tuple[str, Any]] = ()) -> Recipe:
    """The recipe of a YAML file with overrides, ("training.max_steps", 100), on top; path None: overrides alone.

    Raises RecipeError, one line, that names the file, the dotted key and the nearest known key.
    """
    fields = {} if path is None else _mapping(Path(path))
    for key, value in overrides:
        set_field(fields, key, value)
    return build_recipe(fields, _FLAGS if path is None else str(path))


def build_recipe(fields: Mapping[str, Any], origin: str) -> Recipe:
    """The recipe that fields spell; origin is named in errors (the file, or "the flags")."""
    try:
        return Recipe.model_validate(fields)
    except ValidationError as error:
        raise RecipeError(f"{origin}: " + "; ".join(_explain(item, origin) for item in error.errors())) from error


def parse_override(text: str) -> tuple[str, Any]:
    """Key and value of "section.field=value"; the value is read as YAML. Raises RecipeError for other text."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"--set {text}: write section.field=value, as in training.max_steps=100")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {text}: the value is no YAML; quote it") from error


def set_field(fields: dict[str, Any], key: str, value: Any) -> None:
    """Puts value at a dotted key of fields, in place."""
    *sections, name = key.split(".")
    for section in sections:
        inner = fields.setdefault(section, {})
        if isinstance(inner, str) and section in SHORT_FORMS:
            inner = fields[section] = {SHORT_FORMS[section]: inner}
        if not isinstance(inner, dict):
            raise RecipeError(f"{key}: {section} is {inner!r}, which has no fields; spell the section out")
        fields = inner
    fields[name] = value


def recipe_yaml(recipe: Recipe) -> str:
    """The recipe as YAML with every default spelled out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Writes recipe.yaml, whole or not at all."""
    write_text(path, recipe_yaml(recipe))


class _KeyTwice(yaml.MarkedYAMLError):
    """A key that stands twice in one section."""


class _KeysOnce(yaml.SafeLoader):
    """YAML in which no key may stand twice in a section, where the later one would win without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in names:
                raise _KeyTwice(problem=f"the key {key.value!r} stands twice", problem_mark=key.start_mark)
            if isinstance(key, yaml.ScalarNode):
                names.add(key.value)
        return super().construct_mapping(node, deep)


def _mapping(path: Path) -> dict[str, Any]:
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), _KeysOnce)
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}; name a recipe file (YAML)") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is no UTF-8 text; a recipe is a YAML file") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not valid"
        kind = "" if isinstance(error, _KeyTwice) else "no YAML: "
        raise RecipeError(f"{path}{where}: {kind}{problem}; mend the line") from error
    if not isinstance(value, dict):
        held = "nothing" if value is None else f"a {type(value).__name__}"
        raise RecipeError(f"{path} holds {held}, not fields; write `model: PATH` and `data: FILE`")
    return value


def _explain(item: Any, origin: str) -> str:
    """One pydantic error as a phrase: the dotted key, what is wrong, and the fix."""
    raised = item.get("ctx", {}).get("error")
    where = ".".join(str(name) for name in item["loc"])
    if isinstance(raised, LorasmithError):
        return str(raised)
    if item["type"] == "extra_forbidden":
        section = _section_at(item["loc"][:-1])
        known = f" Known: {', '.join(section.model_fields)}."
        return f"{where} is unknown.{nearest(str(item['loc'][-1]), section.model_fields) or known}"
    if item["type"] == "missing":
        flag = _FLAG_OF.get(where) if origin == _FLAGS else None
        fix = f"; give {flag}, or a recipe file" if flag else ""
        return f"{where} is missing ({_description(item['loc'])}){fix}"
    message = str(raised) if raised else item["msg"][:1].lower() + item["msg"][1:]
    given = "" if isinstance(item["input"], dict | list) else f"={item['input']!r}"
    return f"{where}{given}: {message}" if where else message


def _section_at(location: tuple[int | str, ...]) -> type[BaseModel]:
    section: type[BaseModel] = Recipe
    for name in location:
        if isinstance(name, str):
            section = _section_in(section.model_fields[name].annotation) or section
    return section


def _section_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_section_in(inner) for inner in get_args(annotation))
    return next((section for section in found if section), None)


def _description(location: tuple[int | str, ...]) -> str:
    # numbers count inside a list, and the innermost name says what the list is
    names = [name for name in location if isinstance(name, str)]
    field = _section_at(tuple(names[:-1])).model_fields[names[-1]]
    return field.description or "required"
