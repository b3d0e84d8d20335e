import pytest

from lorasmith.attach import adapters_of, attach
from lorasmith.errors import RecipeError
from lorasmith.methods.prefix_tuning import PrefixTuningConfig
from lorasmith.recipes.positions import context_of, room_in
from lorasmith.recipes.prepare import with_length
from lorasmith.recipes.reading import build_recipe
from tiny import llama


def length(context, **data):
    recipe = build_recipe({"model": "m", "data": {"train": "d.jsonl", **data}}, "a test")
    return with_length(recipe, context).data.max_length


def test_without_a_length_the_models_positions_are_the_limit():
    assert length(512) == 512
    assert length(32768) == 1024
    assert length(None) == 1024


def test_a_stated_length_is_kept_and_left_to_the_doctor():
    assert length(512, max_length=1024) == 1024


def test_virtual_tokens_take_positions():
    config = {"max_position_embeddings": 512}
    assert room_in(config, {"name": "prompt_tuning", "num_virtual_tokens": 20}) == 492
    assert room_in(config, {"name": "lora"}) == 512
    model = llama(max_position_embeddings=64)
    assert context_of(model) == 64
    attach(model, PrefixTuningConfig(num_virtual_tokens=20))
    assert context_of(model) == 44
    with adapters_of(model).disabled():
        assert context_of(model) == 64


def test_virtual_tokens_that_leave_no_room_are_refused():
    with pytest.raises(RecipeError, match="num_virtual_tokens=600 leaves no room"):
        room_in({"max_position_embeddings": 512}, {"name": "prompt_tuning", "num_virtual_tokens": 600})
