import pytest

from lorasmith.methods import layer_number, matches


@pytest.mark.parametrize(
    ("wanted", "meant"),
    [
        (["q_proj"], True),
        (["proj"], False),
        (["attn.q_proj"], True),
        (["model.layers.3.attn.q_proj"], True),
        (r".*\.q_proj", True),
        (r"q_proj", False),
        ([], False),
        (None, False),
    ],
)
def test_lists_match_dotted_ends_and_strings_whole_paths(wanted, meant):
    assert matches("model.layers.3.attn.q_proj", wanted) is meant


@pytest.mark.parametrize(
    ("path", "lists", "number"),
    [
        ("model.layers.3.attn.q_proj", [], 3),
        ("model.layers.3.experts.7.w1", [], 3),
        ("model.blocks.2.fc", ["blocks"], 2),
        ("model.blocks.2.fc", ["layers"], None),
        ("head", [], None),
    ],
)
def test_the_layer_number_is_the_first_one_behind_a_list(path, lists, number):
    assert layer_number(path, lists) == number
