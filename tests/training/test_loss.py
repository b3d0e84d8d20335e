"""Sums over supervised targets, whatever the batch's layout and the model's head."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close
from transformers import BertConfig, BertForSequenceClassification

from lorasmith.data.batch import pad
from lorasmith.data.example import Example
from lorasmith.errors import DataError
from lorasmith.models.packed_attention import enable_packing
from lorasmith.ops.token_loss.schema import Objective
from lorasmith.training.loss import ClassificationLoss, SplitHeadLoss, WholeModelLoss, loss_for


def expected(model, examples):
    """One example at a time, on full logits."""
    total = 0
    for example in examples:
        logits = model(input_ids=torch.tensor([example.input_ids])).logits[0, :-1]
        labels = torch.tensor(example.labels)[1:]
        total = total + F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
    return total


@pytest.mark.parametrize("kind", ["split", "whole"])
@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_value_and_gradient_are_those_of_the_examples_alone(layout, kind, model, examples, request):
    assert enable_packing(model) is None
    weight = model.model.layers[0].mlp.up_proj.weight
    wanted = expected(model, examples)
    (wanted_gradient,) = torch.autograd.grad(wanted, weight)
    loss = loss_for(model, "causal") if kind == "split" else WholeModelLoss(model)
    assert isinstance(loss, SplitHeadLoss if kind == "split" else WholeModelLoss)
    got = loss(request.getfixturevalue(layout))
    # f32 sums over 60 targets in another order
    assert_close(got, wanted, rtol=1e-5, atol=0)
    assert_close(torch.autograd.grad(got, weight)[0], wanted_gradient, rtol=1e-3, atol=1e-5)


def test_the_model_inside_a_wrapper_is_split(model, padded):
    class Wrapped(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def get_base_model(self) -> nn.Module:
            return self.inner

    loss = loss_for(Wrapped(model), "causal")
    assert isinstance(loss, SplitHeadLoss)
    assert torch.equal(loss(padded), loss_for(model, "causal")(padded))


@pytest.mark.parametrize("kind", [WholeModelLoss, lambda model: loss_for(model, "causal")], ids=["whole", "split"])
def test_a_batch_that_miscounts_its_targets_is_refused(kind, model, padded):
    wrong = dataclasses.replace(padded, supervised=padded.supervised + 1)
    with pytest.raises(DataError, match=f"says that it has {wrong.supervised} targets and has {padded.supervised}"):
        kind(model)(wrong)


def classifier():
    torch.manual_seed(0)
    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=40)
    return BertForSequenceClassification(config).eval()


def test_classification_sums_over_examples_and_ignores_padding():
    model = classifier()
    examples = [Example([2, 5, 9, 3], 1), Example([2, 7, 3], 0)]
    wanted = sum(
        F.cross_entropy(model(input_ids=torch.tensor([e.input_ids])).logits, torch.tensor([e.labels])) for e in examples
    )
    assert_close(ClassificationLoss(model)(pad(examples, 0)), wanted, rtol=1e-5, atol=0)


def test_token_labels_are_no_classes(padded):
    with pytest.raises(DataError, match="one class id for each row"):
        ClassificationLoss(classifier())(padded)


@pytest.mark.parametrize("kind", ["split", "whole"])
def test_an_objective_smooths_the_targets_and_weighs_the_normaliser(kind, model, examples, request):
    assert enable_packing(model) is None
    objective = Objective(label_smoothing=0.2, z_loss=0.01)
    wanted = 0
    for example in examples:
        logits = model(input_ids=torch.tensor([example.input_ids])).logits[0, :-1]
        labels = torch.tensor(example.labels)[1:]
        wanted = wanted + F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum", label_smoothing=0.2)
        wanted = wanted + 0.01 * logits[labels != -100].logsumexp(1).square().sum()
    loss = loss_for(model, "causal", objective) if kind == "split" else WholeModelLoss(model, objective)
    # f32 sums over 60 targets in another order
    assert_close(loss(request.getfixturevalue("padded")), wanted, rtol=1e-5, atol=0)
