"""Metrics against scikit-learn-free hand counts and scipy's log-sum-exp."""

import json

import numpy as np
import pytest

from lorasmith.errors import DataError, InputError
from lorasmith.evaluation import Classified, Predicted, Scores, compare, metrics
from lorasmith.evaluation.scores import score
from lorasmith.json_text import json_text

TARGET = np.array([0, 0, 0, 1, 1, 2])
CHOSEN = np.array([0, 0, 1, 1, 2, 2])


def classified(target=TARGET, chosen=CHOSEN, classes=3):
    return Classified(target, chosen, np.linspace(0.1, 0.6, len(target)), classes)


def test_f1_by_class_and_macro_equal_a_hand_count():
    scores = score(classified())
    # class 0: 2 of 3 found, 2 of 2 right; class 1: 1 of 2, 1 of 2; class 2: 1 of 1, 1 of 2
    truth = [2 * 2 / 5, 2 * 1 / 4, 2 * 1 / 3]
    assert [scores.per_class[number].value for number in range(3)] == pytest.approx(truth)
    assert scores["f1"].value == pytest.approx(np.mean(truth))


def test_a_class_that_never_occurs_does_not_pull_macro_f1_down():
    assert score(classified(classes=9))["f1"].value == score(classified())["f1"].value
    assert set(score(classified(classes=9)).per_class) == {0, 1, 2}


def test_a_classifier_that_never_says_yes_has_binary_f1_of_zero():
    scores = score(classified(np.array([0, 1, 0, 1]), np.zeros(4, dtype=int), 2))
    assert scores["f1_binary"].value == 0.0


def test_binary_f1_is_given_for_two_classes_only():
    assert "f1_binary" not in score(classified())


def test_accuracy_and_loss_of_a_classifier():
    scores = score(classified())
    assert scores["accuracy"].value == pytest.approx(4 / 6)
    assert scores["loss"].value == pytest.approx(0.35)


def test_perplexity_is_the_exponential_of_the_loss_a_token_with_its_interval():
    random = np.random.default_rng(0)
    scores = score(Predicted(random.gamma(20, 1.0, size=40), random.integers(5, 15, size=40).astype(float)))
    for end in ("value", "low", "high"):
        assert getattr(scores["perplexity"], end) == pytest.approx(np.exp(getattr(scores["loss"], end)), rel=1e-2)


def test_an_unknown_metric_names_the_nearest():
    with pytest.raises(InputError, match="Did you mean 'accuracy'"):
        metrics["accurracy"]


@pytest.mark.parametrize("name", metrics.names())
def test_every_metric_keeps_its_value_inside_its_interval(name):
    metric = metrics[name]
    outcomes = (
        Predicted(np.arange(1.0, 9.0), np.full(8, 4.0))
        if "causal" in metric.tasks
        else classified(TARGET % 2, CHOSEN % 2, 2)
    )
    estimate = metric.estimate(outcomes)
    assert estimate.low <= estimate.value <= estimate.high
    assert estimate.n == len(outcomes)


def test_scores_survive_a_file():
    scores = score(classified())
    assert dict(Scores.from_dict(scores.to_dict())) == dict(scores)
    assert set(scores.to_dict(["good", "bad", "ugly"])["per_class"]) == {"good", "bad", "ugly"}


def test_a_paired_difference_is_far_narrower_than_two_separate_intervals():
    random = np.random.default_rng(0)
    tokens = np.full(300, 10.0)
    before = random.gamma(20, 1.0, size=300)
    # every example a little better: the paired interval sees it, the separate ones overlap
    after = before - 0.5 + random.normal(0, 0.05, size=300)
    first, second = score(Predicted(before, tokens)), score(Predicted(after, tokens))
    assert second["loss"].high > first["loss"].low
    change = compare(first, second)["loss"]
    assert change.high < 0 < -change.value
    assert change.value == pytest.approx(second["loss"].value - first["loss"].value)


def test_no_difference_between_a_model_and_itself():
    scores = score(classified())
    assert all((one.value, one.low, one.high) == (0.0, 0.0, 0.0) for one in compare(scores, scores).values())


def test_scores_on_different_examples_are_not_compared():
    with pytest.raises(DataError, match="different examples"):
        compare(score(classified()), score(classified(TARGET[::-1].copy())))


def test_scores_from_a_file_are_not_compared():
    scores = score(classified())
    with pytest.raises(DataError, match="no examples to compare"):
        compare(scores, Scores.from_dict(scores.to_dict()))


def test_a_score_that_is_not_finite_comes_back_from_its_file_as_such():
    hopeless = score(Predicted(np.full(8, 1e5), np.full(8, 4.0)))
    text = json_text(hopeless.to_dict())
    again = Scores.from_dict(json.loads(text, parse_constant=pytest.fail))
    assert np.isnan(again["perplexity"].value)
    assert again["loss"] == hopeless["loss"]
    assert str(again["perplexity"]) == str(hopeless["perplexity"]) == "not finite (n = 8)"


def test_two_models_without_finite_perplexity_are_compared_by_what_is_known():
    hopeless = score(Predicted(np.full(8, 1e5), np.full(8, 4.0)))
    assert hopeless["perplexity"].value == np.inf
    change = compare(hopeless, hopeless)
    assert change["loss"].value == 0.0
    assert np.isnan(change["perplexity"].value)
