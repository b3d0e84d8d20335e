"""The method section of a recipe."""

from lorasmith.recipes.method_section import resolve_method


def test_an_empty_list_of_parameters_is_stated_since_it_leaves_experts_out():
    assert resolve_method({"name": "lora", "target_parameters": []})["target_parameters"] == []


def test_what_is_not_given_and_empty_is_not_stated():
    assert "target_parameters" not in resolve_method({"name": "lora"})
