"""The quickstart's task is honest by construction, and its world is what the base was trained on."""

import itertools

import pytest

from lorasmith.quickstart.corpus import documents, plain
from lorasmith.quickstart.task import TEST_ITEMS, majority, make_task, split_world
from lorasmith.quickstart.world import TOWNS, make_world

TRAIN, VALIDATION = 1000, 50


@pytest.fixture(scope="module")
def task():
    return make_task(make_world(), TRAIN, VALIDATION, seed=0)


def test_there_are_500_test_items(task):
    assert len(task.test) == TEST_ITEMS >= 500


def test_the_test_questions_are_about_24_people(task):
    assert len({item.prompt.split("Where does ")[1].split()[0] for item in task.test}) == 24


def test_no_name_of_a_test_story_occurs_in_training(task):
    trained = " ".join(item.prompt for item in task.train + task.validation).replace(".", " ").split()
    assert not set(trained) & frozenset().union(*(item.names for item in task.test))


def test_the_names_of_an_item_are_in_its_story(task):
    for item in task.test:
        assert len(item.names) == 4
        assert all(name in item.prompt for name in item.names)


def test_no_prompt_holds_its_answer(task):
    for item in task.train + task.test:
        assert item.completion.strip() not in item.prompt


def test_check_notices_a_test_item_that_was_trained_on(task):
    leaking = type(task)(task.train, task.validation, task.test + task.train[:1])
    with pytest.raises(AssertionError, match="from training"):
        leaking.check()


def test_no_prompt_comes_twice(task):
    prompts = [item.prompt for item in task.train + task.validation + task.test]
    assert len(set(prompts)) == len(prompts)


def test_the_answers_are_towns(task):
    assert {item.completion.strip() for item in task.test} <= {*TOWNS}


def test_no_constant_answer_gets_a_third_right(task):
    assert majority(task.test) < 0.34


def test_the_test_items_are_the_same_for_every_seed(task):
    assert make_task(make_world(), 10, 10, seed=5).test == task.test


def test_the_training_items_differ_between_seeds(task):
    assert make_task(make_world(), TRAIN, VALIDATION, seed=1).train != task.train


def test_the_parts_of_the_split_world_make_up_the_whole():
    world = make_world()
    known, unseen = split_world(world)
    assert {*known.things, *unseen.things} == set(world.things)
    assert len(known.people) + len(unseen.people) == len(world.people)


def test_the_corpus_never_asks_what_the_task_asks(task):
    asked = {item.prompt.split("Question: ")[1].split()[0:2][1] for item in task.test}
    assert asked == {"does"}
    for document in itertools.islice(documents(make_world(), 3), 2000):
        for question in plain(document).split("Question: ")[1:]:
            assert question.split()[1] == "is", question


def test_the_brackets_of_the_corpus_mark_no_text_away():
    document = next(documents(make_world(), 3))
    assert plain(document) == document.replace("[", "").replace("]", "")
