"""The method section of a recipe."""

import pytest

from compat.cases import CASES
from lorasmith.errors import RecipeError
from lorasmith.methods import methods
from lorasmith.recipes.method_section import method_config, resolve_method, section_of


@pytest.mark.parametrize("name", methods.names())
def test_every_method_stands_in_a_recipe_and_comes_back_from_it(name):
    given = CASES[name][0][1] if name in CASES else {}
    fields = {field: value for field, value in given.items() if field != "task_type"}
    stated = resolve_method({"name": name, **fields})
    assert resolve_method(stated) == stated
    config = method_config(stated, "causal", "models/base")
    assert isinstance(config, methods[name].config_class)
    assert resolve_method(section_of(config)) == stated


def test_a_field_that_is_not_there_is_told_with_those_that_are():
    with pytest.raises(RecipeError, match=r"method.r is unknown to the method 'ia3'. It has: .*feedforward_modules"):
        resolve_method({"name": "ia3", "r": 4})
    with pytest.raises(RecipeError, match="Did you mean 'lora_dropout'"):
        resolve_method({"name": "lora", "lora_dropot": 0.1})


def test_a_method_in_capitals_is_near_its_name():
    with pytest.raises(RecipeError, match="Did you mean 'lora'"):
        resolve_method({"name": "LORA"})


def test_an_empty_list_of_parameters_is_stated_since_it_leaves_experts_out():
    assert resolve_method({"name": "lora", "target_parameters": []})["target_parameters"] == []


def test_what_is_not_given_and_empty_is_not_stated():
    assert "target_parameters" not in resolve_method({"name": "lora"})


def test_a_field_that_a_method_never_reads_is_no_field_of_a_recipe():
    with pytest.raises(RecipeError, match=r"method.r is unknown to the method 'adalora'.*init_r"):
        resolve_method({"name": "adalora", "r": 16})


@pytest.mark.parametrize("name", methods.names())
def test_a_null_in_a_recipe_is_taken_or_refused_by_its_field(name):
    section = {"name": name, **(CASES[name][0][1] if name in CASES else {})}
    section.pop("task_type", None)
    for field in resolve_method(section):
        if field == "name":
            continue
        try:
            resolve_method(section | {field: None})
        except RecipeError as error:
            assert f"{field}=None" in str(error)
