"""The recipe's method section: its fields are those of the method's own config class, checked by that class."""

from dataclasses import fields
from typing import Any, cast

from pydantic import TypeAdapter, ValidationError

from lorasmith.errors import InputError, RecipeError, nearest
from lorasmith.methods.config import AdapterConfig
from lorasmith.methods.registry import methods
from lorasmith.recipes.expressions import require_expressions

# what a run fills in itself
_FILLED_IN = {"task_type", "peft_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode"}
# a bare string of these is an expression, and so is every name or key inside those that end in _pattern
_EXPRESSIONS = (
    *("target_modules", "exclude_modules", "feedforward_modules"),
    *("layers_pattern", "rank_pattern", "alpha_pattern"),
)
TASK_TYPES = {"causal": "CAUSAL_LM", "classification": "SEQ_CLS"}


def resolve_method(section: dict[str, Any]) -> dict[str, Any]:
    """The method section with every default spelled out; a method without targets goes where recipes place it.

    Raises RecipeError for an unknown method, an unknown field (with the nearest one) or a value of the wrong kind.
    """
    given = dict(section)
    name = given.pop("name", "lora")
    if not isinstance(name, str):
        raise RecipeError(f"method.name={name!r} is no name; choose one of: {', '.join(methods.names())}")
    known = _fields(name)
    for field in given:
        if field not in known:
            hint = nearest(field, known) or f" It has: {', '.join(known)}."
            raise RecipeError(f"method.{field} is unknown to the method {name!r}.{hint}")
    placement = methods[name].recipe_targets
    if placement is not None and given.get("target_modules") is None:
        given["target_modules"] = placement
    values = _build(name, given).to_dict()
    _require_expressions(values)
    # an empty list that was given says something: target_parameters: [] leaves experts out
    stated = {
        field: values[field] for field in known if values.get(field) not in (None, {}, []) or given.get(field) == []
    }
    return {"name": name, **stated}


def method_config(section: dict[str, Any], task: str, base: str) -> AdapterConfig:
    """The config object of a resolved method section, for the task on the base model of this path."""
    given = {field: value for field, value in section.items() if field != "name"}
    filled = {"task_type": TASK_TYPES[task], "base_model_name_or_path": base}
    return _build(section["name"], given | filled)


def section_of(config: AdapterConfig) -> dict[str, Any]:
    """The method section that describes a config object."""
    name = config.METHOD.lower()
    values = config.to_dict()
    return {"name": name, **{field: values[field] for field in _fields(name) if values.get(field) is not None}}


def _build(name: str, values: dict[str, Any]) -> AdapterConfig:
    try:
        config = cast(AdapterConfig, TypeAdapter(methods[name].config_class).validate_python(values))
    except ValidationError as error:
        first = error.errors()[0]
        raised = first.get("ctx", {}).get("error")
        where = ".".join(["method", *(str(part) for part in first["loc"][:1])])
        given = f"={first['input']!r}" if first["loc"] else ""
        raise RecipeError(f"{where}{given}: {raised or first['msg']}") from error
    for field, value in values.items():
        # a whole number stays one: other programs read lora_alpha from the saved config as an integer
        if type(value) is int and type(getattr(config, field)) is float:
            setattr(config, field, value)
    return config


def _require_expressions(values: dict[str, Any]) -> None:
    for field in _EXPRESSIONS:
        value = values.get(field) or ()
        if isinstance(value, str):
            require_expressions(f"method.{field}", [value])
        elif field.endswith("_pattern"):
            require_expressions(f"method.{field}", value)


def _fields(name: str) -> list[str]:
    try:
        config_class = methods[name].config_class
    except InputError as error:
        raise RecipeError(f"method.name: {error}") from error
    left_out = {*_FILLED_IN, *config_class.NEVER_READ}
    return [field.name for field in fields(config_class) if field.name not in left_out]
