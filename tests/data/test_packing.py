from hypothesis import given, settings
from hypothesis import strategies as st

from lorasmith.data.packing import WINDOW, pack


@given(st.lists(st.integers(1, 50), max_size=120), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_packs_hold_every_example_once_and_never_more_than_max_length(lengths, random):
    order = list(range(len(lengths)))
    random.shuffle(order)
    packs = pack(lengths, order, 50)
    assert sorted(index for one in packs for index in one) == sorted(order)
    assert all(0 < sum(lengths[index] for index in one) <= 50 for one in packs)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=120))
@settings(deadline=None)
def test_at_most_one_pack_is_not_more_than_half_full(lengths):
    # the bound of first fit: two such packs would have been one
    packs = pack(lengths, range(len(lengths)), 50)
    assert sum(sum(lengths[index] for index in one) * 2 <= 50 for one in packs) <= 1


def test_a_known_case_is_packed_by_first_fit_decreasing():
    # 7 opens, 6 opens, 4 fits behind 6, 3 behind 7, 2 opens, 1 behind it
    assert pack([4, 7, 1, 6, 3, 2], range(6), 10) == [[1, 4], [3, 0], [5, 2]]


def test_examples_are_packed_with_those_of_their_window_only():
    lengths = [1] * (WINDOW + 1)
    packs = pack(lengths, range(len(lengths)), 10 * WINDOW)
    assert [len(one) for one in packs] == [WINDOW, 1]
