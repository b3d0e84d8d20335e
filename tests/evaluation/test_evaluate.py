"""Whole evaluations of tiny real architectures, against their own forwards."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.tiny import bert, llama
from torch import nn

from lorasmith.data import Example, Loader
from lorasmith.errors import DataError
from lorasmith.evaluation import evaluate_causal, evaluate_classifier
from lorasmith.models.packed_attention import enable_packing

LENGTHS = (5, 9, 2, 7, 12, 3)


def examples():
    random = np.random.default_rng(0)
    ids = [random.integers(0, 64, size=length).tolist() for length in LENGTHS]
    # the first two tokens of each are a prompt
    return [Example(each, [-100, -100, *each[2:]]) for each in ids]


def batches(padding_free):
    return Loader(
        examples(), 2, seed=0, packing=False, max_length=16, padding_free=padding_free, pad_token_id=0, shuffle=False
    ).one_pass()


def true_nll(model):
    """One example at a time through the model's own loss."""
    with torch.no_grad():
        return [
            (float(model(torch.tensor([one.input_ids]), labels=torch.tensor([one.labels])).loss), one.supervised)
            for one in examples()
            if one.supervised
        ]


@pytest.mark.parametrize("padding_free", [False, True])
def test_causal_scores_equal_the_models_own_loss_example_by_example(padding_free):
    model = llama()
    truth = true_nll(model)
    if padding_free:
        assert enable_packing(model) is None
    scores = evaluate_causal(model, batches(padding_free))
    weighed = sum(loss * count for loss, count in truth) / sum(count for _, count in truth)
    # f32 sums in another order
    assert scores["loss"].value == pytest.approx(weighed, abs=1e-5)
    assert scores["perplexity"].value == pytest.approx(np.exp(weighed), rel=1e-5)
    assert scores["loss"].n == len(truth)


def test_each_example_has_its_own_nll_whether_padded_or_packed():
    model = llama()
    enable_packing(model)
    packed, padded = evaluate_causal(model, batches(True)).outcomes, evaluate_causal(model, batches(False)).outcomes
    assert sorted(packed.tokens) == sorted(padded.tokens)
    assert np.sort(packed.nll) == pytest.approx(np.sort(padded.nll), abs=1e-4)


def test_a_model_whose_head_cannot_be_split_scores_the_same():
    model = llama()

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, **arguments):
            return self.inner(**arguments)

    whole, split = evaluate_causal(Wrapped(), batches(False)), evaluate_causal(model, batches(False))
    assert whole["loss"].value == pytest.approx(split["loss"].value, abs=1e-5)


def test_logits_of_the_split_head_exist_for_one_chunk_at_a_time(monkeypatch):
    monkeypatch.setattr("lorasmith.ops.cross_entropy.schema._CHUNK_ELEMENTS", 64 * 4)
    model, rows = llama(), []
    expected = evaluate_causal(llama(), batches(False))["loss"].value
    model.lm_head.register_forward_hook(lambda module, inputs, output: rows.append(output.shape[0]))
    assert evaluate_causal(model, batches(False))["loss"].value == pytest.approx(expected, abs=1e-6)
    # the two forwards of the head's trial have a batch axis of 1
    assert max(rows) == 4


def test_every_module_keeps_its_own_mode_even_after_an_error():
    model = llama().train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    evaluate_causal(model, batches(False))
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(DataError):
        evaluate_causal(model, [])
    assert [module.training for module in model.modules()] == modes


def test_dropout_is_off_and_no_gradient_is_kept():
    model = bert().train()
    first, second = (evaluate_classifier(model, class_batches()) for _ in range(2))
    assert np.array_equal(first.outcomes.nll, second.outcomes.nll)
    assert all(parameter.grad is None for parameter in model.parameters())


def class_batches(labels=(0, 2, 1, 1, 0, 2)):
    rows = [Example(one.input_ids, label) for one, label in zip(examples(), labels)]
    return Loader(
        rows, 4, seed=0, packing=False, max_length=16, padding_free=False, pad_token_id=0, shuffle=False
    ).one_pass()


def test_classifier_scores_equal_single_forwards():
    model, labels = bert(), (0, 2, 1, 1, 0, 2)
    with torch.no_grad():
        logits = torch.cat([model(torch.tensor([one.input_ids])).logits for one in examples()])
    scores = evaluate_classifier(model, class_batches(labels))
    assert scores["accuracy"].value == pytest.approx(float((logits.argmax(-1) == torch.tensor(labels)).float().mean()))
    # padding changes the order of f32 sums
    assert scores["loss"].value == pytest.approx(float(F.cross_entropy(logits, torch.tensor(labels))), abs=1e-5)


def test_a_label_that_is_no_class_is_refused_with_the_fix():
    with pytest.raises(DataError, match=r"label 7 is no class of a model with 3.*num_labels=8"):
        evaluate_classifier(bert(), class_batches((0, 2, 1, 1, 0, 7)))


def test_labels_that_are_all_masked_are_refused():
    masked = [Example([1, 2, 3], [-100, -100, -100])]
    loader = Loader(masked, 1, seed=0, packing=False, max_length=4, padding_free=False, pad_token_id=0)
    with pytest.raises(DataError, match="no token of the validation data"):
        evaluate_causal(llama(), loader.one_pass())
