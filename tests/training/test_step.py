"""A step weighs every target equally, and refuses to pretend."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lorasmith.data.batch import pad
from lorasmith.errors import RunError
from lorasmith.training.checkpoint import trainable_parameters
from lorasmith.training.loss import loss_for
from lorasmith.training.optimizers import build
from lorasmith.training.settings import TrainingSettings
from lorasmith.training.step import TrainingStep


class Recorded:
    """An optimizer that keeps the gradients that it is stepped with."""

    def __init__(self, parameters):
        self.parameters, self.gradients = parameters, None

    def zero_grad(self):
        for parameter in self.parameters.values():
            parameter.grad = None

    def step(self, learning_rate):
        self.gradients = {name: parameter.grad.clone() for name, parameter in self.parameters.items()}


def step_for(model, loss=None, clip=None, autocast=None):
    parameters = trainable_parameters(model)
    return TrainingStep(parameters, Recorded(parameters), loss or loss_for(model, "causal"), clip, autocast)


def test_accumulation_equals_the_large_batch_with_unequal_supervised_counts(model, examples):
    # micro-batches of 1, 2 and 3 examples with 5 to 15 targets each
    parts = [pad(examples[:1], 0), pad(examples[1:3], 0), pad(examples[3:], 0)]
    assert len({part.supervised for part in parts}) == 3
    large, small = step_for(model), step_for(model)
    whole = large(1, [pad(examples, 0)], 0.1)
    accumulated = small(1, parts, 0.1)
    assert accumulated.supervised == whole.supervised
    assert accumulated.tokens == whole.tokens == sum(len(example.input_ids) for example in examples)
    # f32 sums in another order
    assert accumulated.loss == pytest.approx(whole.loss, rel=1e-6)
    assert accumulated.grad_norm == pytest.approx(whole.grad_norm, rel=1e-4)
    for name, gradient in large.optimizer.gradients.items():
        assert_close(small.optimizer.gradients[name], gradient, rtol=1e-3, atol=1e-6)


def test_a_micro_batch_without_targets_adds_nothing(model, padded):
    empty = dataclasses.replace(padded, labels=torch.full_like(padded.labels, -100), supervised=0)
    alone, beside = step_for(model), step_for(model)
    assert alone(1, [padded], 0.1).loss == beside(1, [padded, empty], 0.1).loss
    assert all(torch.equal(alone.optimizer.gradients[n], g) for n, g in beside.optimizer.gradients.items())


def test_the_gradient_is_clipped_to_the_norm_that_is_reported_before(model, padded):
    step = step_for(model, clip=0.01)
    result = step(1, [padded], 0.1)
    norm = torch.stack([gradient.norm() for gradient in step.optimizer.gradients.values()]).norm()
    assert result.grad_norm > 0.1
    assert norm.item() == pytest.approx(0.01, rel=1e-3)


def test_all_labels_masked_is_an_error_and_no_loss_of_zero(model, padded):
    empty = dataclasses.replace(padded, labels=torch.full_like(padded.labels, -100), supervised=0)
    with pytest.raises(RunError, match="step 3: none of the 2 micro-batches has a token to learn from"):
        step_for(model)(3, [empty, empty], 0.1)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_loss_that_is_not_finite_stops_before_anything_moves(value, model, padded):
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    parameters = trainable_parameters(model)
    own = loss_for(model, "causal")
    optimizer = build(parameters, TrainingSettings())
    step = TrainingStep(parameters, optimizer, lambda batch: own(batch) * float(value), 1.0, None)
    with pytest.raises(RunError, match=f"step 7: the loss is {value}"):
        step(7, [padded], 0.1)
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    assert optimizer.steps == 0


def test_a_gradient_that_is_not_finite_stops_too(model, padded):
    model.model.layers[0].mlp.up_proj.weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(RunError, match="step 2: the gradient's norm is nan"):
        step_for(model)(2, [padded], 0.1)


def test_trained_parameters_that_take_no_part_are_an_error(model, padded):
    model.requires_grad_(False)
    model.aside = nn.Linear(2, 2)
    with pytest.raises(RunError, match="depends on no trained parameter"):
        step_for(model)(1, [padded], 0.1)


def test_gradients_of_exactly_zero_at_the_start_are_an_error(model, padded):
    own = loss_for(model, "causal")
    with pytest.raises(RunError, match="every gradient is exactly zero"):
        step_for(model, loss=lambda batch: own(batch) * 0 + 3)(1, [padded], 0.1)


def test_bf16_with_f32_adapters_trains_near_f32(model, padded):
    exact = step_for(model)(1, [padded], 0.1)
    model.requires_grad_(False).bfloat16()
    model.model.norm.float().requires_grad_()
    step = step_for(model, autocast=torch.bfloat16)
    low = step(1, [padded], 0.1)
    # bf16 keeps 8 significant bits: 0.4 % a rounding, averaged over 60 targets
    assert low.loss == pytest.approx(exact.loss, rel=5e-3)
    assert step.optimizer.gradients["model.norm.weight"].dtype == torch.float32
