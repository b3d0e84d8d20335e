"""Mixtures by weight, and validation sets that share nothing with training."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorasmith.data import Example, draws, mix, repeated, split
from lorasmith.errors import DataError


def example(number):
    return Example([number, number + 1], [number, number + 1])


def examples(*numbers):
    return [example(number) for number in numbers]


def counts(chosen):
    return Counter(one.input_ids[0] for one in chosen)


def test_weight_one_takes_every_example_once():
    assert counts(mix([(examples(1, 2), 1), (examples(3), 1.0)], seed=0)) == {1: 1, 2: 1, 3: 1}


def test_a_weight_is_the_number_of_passes():
    mixed = counts(mix([(examples(*range(10)), 2.5), (examples(*range(20, 40)), 0.25)], seed=0))
    first, second = ({n: c for n, c in mixed.items() if (n < 20) == low} for low in (True, False))
    assert sorted(first.values()) == [2] * 5 + [3] * 5
    assert sorted(second.values()) == [1] * 5
    assert draws([10, 20], [2.5, 0.25]) == [25, 5]


def test_the_part_that_a_weight_takes_follows_from_the_seed():
    source = examples(*range(100))
    assert mix([(source, 0.5)], seed=1) == mix([(source, 0.5)], seed=1)
    assert mix([(source, 0.5)], seed=1) != mix([(source, 0.5)], seed=2)


@pytest.mark.parametrize("weight", [0, -1, float("inf"), float("nan")])
def test_a_weight_that_is_no_positive_number_is_refused(weight):
    with pytest.raises(DataError, match="must be a positive number"):
        mix([(examples(1), weight)], seed=0)


def test_a_source_without_examples_is_refused():
    with pytest.raises(DataError, match="no examples left to mix"):
        mix([(examples(1), 1), ([], 1)], seed=0)


some_numbers = st.lists(st.integers(0, 30), min_size=2, max_size=80).filter(lambda numbers: len(set(numbers)) > 1)


@given(some_numbers, st.floats(0.01, 0.9), st.integers(0, 5))
@settings(deadline=None)
def test_training_and_validation_are_everything_and_share_no_content(numbers, fraction, seed):
    training, validation = split(examples(*numbers), fraction, seed)
    assert training and validation
    assert counts(training) + counts(validation) == Counter(numbers)
    assert not set(counts(training)) & set(counts(validation))
    assert repeated(training, validation) == 0


@given(some_numbers, st.integers(0, 5))
@settings(deadline=None)
def test_the_split_does_not_depend_on_the_order_of_records(numbers, seed):
    validation = split(examples(*numbers), 0.3, seed)[1]
    assert counts(split(examples(*sorted(numbers)), 0.3, seed)[1]) == counts(validation)


def test_the_split_has_the_size_asked_for_where_nothing_repeats():
    training, validation = split(examples(*range(1000)), 0.05, seed=0)
    assert (len(training), len(validation)) == (950, 50)
    assert split(examples(*range(1000)), 0.05, seed=0)[1] == validation
    assert split(examples(*range(1000)), 0.05, seed=1)[1] != validation


def test_at_least_one_example_is_held_out():
    assert len(split(examples(1, 2, 3), 0.001, seed=0)[1]) == 1


def test_at_least_one_example_is_left_to_train_on():
    assert len(split(examples(1, 2), 0.9, seed=0)[0]) == 1


def test_a_fraction_of_nothing_holds_nothing_out():
    assert split(examples(1), 0, seed=0) == (examples(1), [])


@pytest.mark.parametrize("numbers", [[1], [1, 1, 1]])
def test_one_content_cannot_be_parted(numbers):
    with pytest.raises(DataError, match=r"cannot be parted into training and validation.*validation_fraction: 0"):
        split(examples(*numbers), 0.5, seed=0)


def test_a_fraction_that_leaves_no_training_is_refused():
    with pytest.raises(DataError, match=r"validation_fraction=1.0 must be at least 0 and below 1"):
        split(examples(1, 2), 1.0, seed=0)


def test_validation_examples_that_training_has_too_are_counted():
    assert repeated(examples(1, 2), examples(2, 3, 2)) == 2


def test_equal_tokens_with_another_loss_mask_are_another_example():
    assert Example([1, 2], [-100, 2]).digest() != Example([1, 2], [1, 2]).digest()
    assert Example([1, 2], 1).digest() != Example([1, 2], 0).digest()
