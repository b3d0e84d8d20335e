"""Intervals: values from textbooks, coverage by simulation."""

import numpy as np
import pytest
from scipy import stats

from lorasmith.errors import DataError
from lorasmith.evaluation.estimate import Estimate, bootstrap, interval, wilson


def mean(totals):
    return totals[..., 0] / totals[..., 1]


def rows(values):
    return np.stack([values, np.ones_like(values)], 1)


@pytest.mark.parametrize(("right", "of"), [(0, 10), (3, 10), (10, 10), (457, 500)])
def test_wilson_equals_scipy(right, of):
    truth = stats.binomtest(right, of).proportion_ci(method="wilson")
    ours = wilson(right, of)
    assert (ours.low, ours.high) == pytest.approx((truth.low, truth.high), abs=1e-12)
    assert ours.value == right / of and ours.n == of


def test_bootstrap_of_a_mean_is_as_wide_as_the_normal_interval():
    values = np.random.default_rng(3).normal(2.0, 1.5, size=2000)
    estimate = bootstrap(rows(values), mean)
    width = 2 * 1.96 * values.std() / np.sqrt(len(values))
    # 1,000 resamples place a 2.5 % point within a few per cent of the width
    assert estimate.high - estimate.low == pytest.approx(width, rel=0.1)
    assert estimate.low < estimate.value < estimate.high


def test_bootstrap_intervals_cover_the_truth_about_as_often_as_they_say():
    random = np.random.default_rng(0)
    samples = [random.exponential(1.0, size=80) for _ in range(200)]
    estimates = [bootstrap(rows(sample), mean) for sample in samples]
    covered = np.mean([one.low <= 1.0 <= one.high for one in estimates])
    # 95 % nominal; skewed data of 80 gives a little less, and 200 trials scatter by 1.5 %
    assert 0.88 <= covered <= 0.99


def test_bootstrap_is_the_same_for_the_same_seed_and_another_for_another():
    values = np.random.default_rng(1).normal(size=50)
    assert bootstrap(rows(values), mean) == bootstrap(rows(values), mean)
    assert bootstrap(rows(values), mean) != bootstrap(rows(values), mean, seed=1)


def test_a_ratio_weighs_every_token_the_same():
    # nll 10 over 1 token, 0 over 9 tokens: 1 nat a token, not the mean of 10 and 0
    assert bootstrap(np.array([[10.0, 1.0], [0.0, 9.0]]), mean).value == 1.0


@pytest.mark.parametrize("estimate", [lambda: wilson(0, 0), lambda: bootstrap(np.zeros((0, 2)), mean)])
def test_no_examples_are_refused(estimate):
    with pytest.raises(DataError, match="no examples to score"):
        estimate()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_have_an_interval_without_a_word_from_numpy(value):
    estimate = bootstrap(rows(np.array([1.0, 2.0, value])), mean)
    assert str(estimate.value) == str(value)
    assert str(estimate.high) == str(value)


def test_an_interval_reaches_to_infinity_where_a_share_of_the_resamples_does():
    drawn = [np.array([1.0] * 900 + [np.inf] * 100)]
    assert interval(1.0, drawn, 10) == Estimate(1.0, 1.0, np.inf, 10)
