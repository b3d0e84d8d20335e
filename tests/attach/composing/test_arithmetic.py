"""The arithmetic on bare tensors, against PEFT's functions and against numbers worked out by hand."""

import pytest
import torch
from torch.testing import assert_close

from lorasmith.attach.composing.arithmetic import Arithmetic, agreeing, disjoint_mean, drop_at_random, largest
from lorasmith.errors import AttachError

WEIGHTS = [0.7, -0.4, 1.2]


def tasks(seed: int = 0) -> list[torch.Tensor]:
    torch.manual_seed(seed)
    return [torch.randn(6, 5) for _ in WEIGHTS]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_largest_entries_stay_and_the_others_are_zero():
    task = torch.tensor([[1.0, -4.0, 0.5], [3.0, -0.1, 2.0]])
    # half of six
    assert torch.equal(largest(task, 0.5), torch.tensor([[0.0, -4.0, 0.0], [3.0, 0.0, 2.0]]))


def test_ties_by_hand():
    # signs elected by the sum: -, +, +, + (a tie of zero counts as +); each mean is over those that agree
    one, two = torch.tensor([1.0, 2.0, 0.0, -1.0]), torch.tensor([-3.0, 4.0, 5.0, 1.0])
    agree = agreeing(torch.stack([one, two]), "total")
    assert agree.tolist() == [[False, True, False, False], [True, True, True, True]]
    assert disjoint_mean(torch.stack([one, two]), agree).tolist() == [-3.0, 3.0, 5.0, 1.0]


@pytest.mark.parametrize("method", ["total", "frequency"])
@pytest.mark.parametrize("density", [0.2, 0.5, 0.9])
def test_every_combination_equals_pefts_to_the_last_bit(density, method):
    theirs = pytest.importorskip("peft.utils.merge_utils")
    weights = torch.tensor(WEIGHTS)
    expected = {
        ("none", False): theirs.task_arithmetic(tasks(), weights),
        ("magnitude", False): theirs.magnitude_prune(tasks(), weights, density),
        ("magnitude", True): theirs.ties(tasks(), weights, density, method),
    }
    for elects, function in ((False, theirs.dare_linear), (True, theirs.dare_ties)):
        extra = (method,) if elects else ()
        torch.manual_seed(3)
        start = torch.get_rng_state()
        made = tasks()
        # theirs draws from the global stream; ours from a generator that stands at the same place
        torch.set_rng_state(start)
        expected["random", elects] = function(made, weights, density, *extra)
    for (pruning, elects), value in expected.items():
        ours = Arithmetic(pruning, elects, density, method)(tasks(), WEIGHTS, seeded(3))
        assert torch.equal(ours, value), (pruning, elects)


def test_dropping_keeps_the_expectation_and_drops_the_share_asked_for():
    dropped = drop_at_random(torch.ones(100_000), 0.3, seeded())
    # four standard deviations of a mean of 100,000
    assert float((dropped != 0).float().mean()) == pytest.approx(0.3, abs=0.006)
    assert float(dropped.mean()) == pytest.approx(1, abs=0.02)
    assert dropped.unique().tolist() == [0.0, pytest.approx(1 / 0.3)]


def test_a_density_of_one_prunes_nothing():
    for pruning in ("magnitude", "random"):
        whole = Arithmetic(pruning, density=1.0)(tasks(), WEIGHTS, seeded())
        assert torch.equal(whole, Arithmetic()(tasks(), WEIGHTS, seeded()))


def test_a_mean_over_none_is_zero():
    assert_close(disjoint_mean(torch.ones(2, 3), torch.zeros(2, 3, dtype=torch.bool)), torch.zeros(3))


@pytest.mark.parametrize("density", [None, 0.0, -0.1, 1.5])
def test_pruning_without_a_share_is_refused(density):
    with pytest.raises(AttachError, match="density"):
        Arithmetic("magnitude", density=density)


def test_an_unknown_election_is_refused():
    with pytest.raises(AttachError, match=r"'loudest'.*total, frequency"):
        Arithmetic("magnitude", density=0.5, sign="loudest")
