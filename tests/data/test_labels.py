import pytest

from lorasmith.data.labels import label_id, label_names
from lorasmith.errors import DataError


def names(*labels):
    return label_names([(label, f"line {number}") for number, label in enumerate(labels, 1)])


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ((1, 0, 1), ("0", "1")),
        (("2", "0"), ("0", "1", "2")),  # what CSV makes of numbers
        ((1.0, 0.0), ("0", "1")),  # what a table with missing values makes of them
        ((True, False), ("0", "1")),
        (("pos", "neg", "pos"), ("neg", "pos")),
        (("3", "three"), ("3", "three")),
    ],
)
def test_classes_are_collected_in_the_order_of_their_ids(labels, expected):
    assert names(*labels) == expected


def test_ids_follow_the_names():
    assert [label_id(label, ("neg", "pos"), "p") for label in ("pos", "neg", 1, "0")] == [1, 0, 1, 0]


@pytest.mark.parametrize("labels", [(0, -1), (0.5,), (float("nan"),), ([1],), (0, "pos")])
def test_labels_that_are_no_classes_are_refused_with_their_place(labels):
    with pytest.raises(DataError, match=r"line \d: the label"):
        names(*labels)


def test_a_label_that_training_did_not_have_is_refused():
    with pytest.raises(DataError, match=r"p: the label 'posi' is none of the 2: neg, pos. Did you mean 'pos'"):
        label_id("posi", ("neg", "pos"), "p")
    with pytest.raises(DataError, match="the label 2 is none of the 2"):
        label_id(2, ("neg", "pos"), "p")


def test_numbers_that_cannot_be_classes_are_refused():
    with pytest.raises(DataError, match=r"line 2: the label 100000000 would make 100,000,001 classes for 2 records"):
        names(0, 100_000_000)
