from lorasmith.recipes.prepare import with_length
from lorasmith.recipes.reading import build_recipe


def length(context, **data):
    recipe = build_recipe({"model": "m", "data": {"train": "d.jsonl", **data}}, "a test")
    return with_length(recipe, context).data.max_length


def test_without_a_length_the_models_positions_are_the_limit():
    assert length(512) == 512
    assert length(32768) == 1024
    assert length(None) == 1024


def test_a_stated_length_is_kept_and_left_to_the_doctor():
    assert length(512, max_length=1024) == 1024
