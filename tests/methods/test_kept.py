import copy
import pickle

import pytest
import torch

from lorasmith.methods.kept import Kept


class Counting:
    """Makes the sum of tensors, and counts how often."""

    def __init__(self, *tensors):
        self.tensors, self.made, self.kept = list(tensors), 0, Kept()

    def __call__(self, key=None):
        return self.kept.get(self.tensors, self.make, key)

    def make(self):
        self.made += 1
        return sum(float(tensor.detach().sum()) for tensor in self.tensors)


def test_a_value_is_made_once_while_nothing_changes():
    total = Counting(torch.ones(2), torch.ones(3))
    assert [total(), total(), total.made] == [5, 5, 1]


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors[0].add_(1),
        lambda tensors: tensors[0].view(1, 2)[0].add_(1),
        lambda tensors: setattr(tensors[0], "data", torch.full((2,), 2.0)),
        lambda tensors: tensors.__setitem__(0, torch.full((2,), 2.0)),
    ],
    ids=["a write", "a write through a view", "other memory", "another tensor"],
)
def test_any_change_of_a_source_makes_it_anew(change):
    total = Counting(torch.ones(2))
    assert total() == 2
    change(total.tensors)
    assert (total(), total.made) == (4, 2)


def test_a_step_of_an_optimizer_is_a_change():
    total = Counting(torch.nn.Parameter(torch.ones(2)))
    total()
    total.tensors[0].grad = torch.ones(2)
    torch.optim.SGD(total.tensors, lr=1.0).step()
    assert total() == 0


def test_another_key_makes_it_anew():
    total = Counting(torch.ones(2))
    for key in ("one", "one", "other"):
        total(key)
    assert total.made == 2


def test_nothing_is_kept_of_tensors_that_count_no_writes():
    with torch.inference_mode():
        total = Counting(torch.ones(2))
        total()
        total.tensors[0].add_(1)
        assert (total(), total.made) == (4, 2)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda kept: pickle.loads(pickle.dumps(kept))])
def test_a_copy_begins_empty(copied):
    total = Counting(torch.ones(2))
    total()
    total.kept = copied(total.kept)
    total()
    assert total.made == 2
