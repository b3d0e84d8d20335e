"""float16 trains to the end: what overflows is left out, and the loss is scaled so that the rest is not lost."""

import json
import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lorasmith.attach import adapters_of, attach
from lorasmith.errors import RunError
from lorasmith.methods.lora import LoraConfig
from lorasmith.training import Job, train_together
from lorasmith.training.checkpoint import trainable_parameters
from lorasmith.training.loop import run
from lorasmith.training.loss import loss_for
from lorasmith.training.loss_scale import LossScale
from lorasmith.training.optimizers import build
from lorasmith.training.position import Position
from lorasmith.training.precision import autocast_dtype, loss_scale
from lorasmith.training.run_folder import RunFolder
from lorasmith.training.settings import TrainingSettings
from lorasmith.training.step import TrainingStep
from tiny import llama, quantized


class Overflowing(torch.autograd.Function):
    """x, whose gradient passes through float16 with a factor that a large loss scale carries beyond its end."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return (gradient.float() * ctx.factor).half().float() / ctx.factor, None


class BadSteps:
    """The loss of a model; the numbered calls overflow in the backward pass, with every scale of these tests."""

    def __init__(self, model, bad):
        self.own, self.bad, self.calls = loss_for(model, "causal"), bad, 0

    def __call__(self, batch):
        self.calls += 1
        nll = self.own(batch)
        # the gradient of the sum is 1 / targets: some hundredth
        return Overflowing.apply(nll, 2000.0) if self.calls in self.bad else nll


def step_for(model, loss, scale):
    parameters = trainable_parameters(model)
    optimizer = build(parameters, TrainingSettings())
    return TrainingStep(parameters, optimizer, loss, 1.0, torch.float16, scale=scale)


def snapshot(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def settings(**fields):
    return TrainingSettings(**({"learning_rate": 1e-2, "dtype": "fp16", "save_every": 2} | fields))


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_an_overflow_leaves_the_step_out_and_halves_the_scale(model, padded):
    scale = LossScale()
    step = step_for(model, BadSteps(model, {1}), scale)
    before = snapshot(model)
    result = step(1, [padded], 1e-2)
    assert not result.taken
    assert math.isfinite(result.loss)
    assert (scale.factor, scale.skipped, step.optimizer.steps) == (2.0**15, 1, 0)
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert step(2, [padded], 1e-2).taken
    assert (scale.factor, scale.good, step.optimizer.steps) == (2.0**15, 1, 1)


def test_a_scaled_step_is_the_step_without_a_scale(new_model, padded):
    # f32 inside, so that powers of two round nothing
    models = [new_model(), new_model()]
    for model, scale in zip(models, (None, LossScale()), strict=True):
        parameters = trainable_parameters(model)
        own = TrainingStep(
            parameters, build(parameters, TrainingSettings()), loss_for(model, "causal"), 1.0, None, scale=scale
        )
        own(1, [padded], 1e-2)
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        assert_close(one, other, rtol=1e-6, atol=1e-8)


def test_a_loss_that_is_infinite_is_left_out_until_the_scale_is_at_its_end(model, padded):
    own = loss_for(model, "causal")
    step = step_for(model, lambda batch: own(batch) * math.inf, LossScale())
    before = snapshot(model)
    for number in range(1, 17):
        assert not step(number, [padded], 1e-2).taken
    with pytest.raises(RunError, match="step 17: the gradient is not finite with a loss scale of 1 either"):
        step(17, [padded], 1e-2)
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())


def test_the_scale_doubles_after_a_thousand_good_steps_up_to_its_limit():
    scale = LossScale(factor=2.0**23)
    for _ in range(999):
        scale.took()
    assert scale.factor == 2.0**23
    scale.took()
    assert (scale.factor, scale.good) == (2.0**24, 0)
    for _ in range(1000):
        scale.took()
    assert scale.factor == 2.0**24


def test_gradients_that_float16_would_lose_are_kept():
    # a gradient of 2e-8 is nothing in float16; times 2^16 it is a normal number
    weight = nn.Parameter(torch.ones(3))
    lost, kept = ((weight.half().float() * 2e-8).sum() * factor for factor in (1.0, LossScale().factor))
    assert torch.equal(torch.autograd.grad(lost, weight)[0], torch.zeros(3))
    (gradient,) = torch.autograd.grad(kept, weight)
    LossScale().unscale_([gradient])
    assert_close(gradient, torch.full((3,), 2e-8), rtol=1e-3, atol=0)


def test_float16_runs_to_the_end_and_learns(model, padded, repeating, tmp_path):
    result = run(model, repeating([padded]), settings(max_steps=20), RunFolder(tmp_path))
    logged = lines(tmp_path)
    assert result.steps == 20
    assert logged[-1]["loss"] < logged[0]["loss"] / 2
    assert all(line["loss_scale"] >= 1 for line in logged)


def test_a_run_in_float16_goes_on_bit_equal_after_an_overflow(new_model, padded, repeating, tmp_path):
    def train(folder, steps, bad, resume=False):
        model = new_model()
        stream, own = repeating([padded]), settings(max_steps=steps, schedule="constant")
        run(model, stream, own, RunFolder(folder), loss=BadSteps(model, bad), resume=resume)
        return snapshot(model)

    whole = train(tmp_path / "whole", 6, {2, 5})
    train(tmp_path / "parts", 4, {2})
    # steps are counted anew in the second process: the fifth is its first
    resumed = train(tmp_path / "parts", 6, {1}, resume=True)
    assert all(torch.equal(whole[name], tensor) for name, tensor in resumed.items())
    scales = [
        [(line["loss_scale"], line["skipped_steps"]) for line in lines(tmp_path / name)] for name in ("whole", "parts")
    ]
    assert scales[0] == scales[1]
    # from 2^16 twice halved
    assert scales[0][0] == (2.0**16, 0)
    assert scales[0][-1] == (2.0**14, 2)


def test_a_step_without_a_finite_loss_leaves_json_behind(model, padded, repeating, tmp_path):
    own, calls = loss_for(model, "causal"), []

    def once_infinite(batch):
        calls.append(batch)
        return own(batch) * (math.inf if len(calls) == 1 else 1.0)

    run(model, repeating([padded]), settings(max_steps=2), RunFolder(tmp_path), loss=once_infinite)
    first, second = lines(tmp_path)
    assert "loss" not in first and "grad_norm" not in first
    assert math.isfinite(second["loss"])
    assert (second["loss_scale"], second["skipped_steps"]) == (2.0**15, 1)


def test_a_position_keeps_its_scale_and_older_ones_have_none():
    position = Position(step=3, loss_scale=LossScale(4.0, 2, 1))
    state = json.loads(json.dumps(position.to_json()))
    assert Position.from_json(state) == position
    del state["loss_scale"]
    assert Position.from_json(state).loss_scale is None


@pytest.mark.parametrize(
    ("weights", "precision", "wanted"),
    [
        (torch.float32, "auto", None),
        (torch.float16, "auto", torch.float16),
        (torch.bfloat16, "auto", torch.bfloat16),
        (torch.float32, "fp16", torch.float16),
        (torch.bfloat16, "fp32", None),
    ],
)
def test_only_float16_activations_have_a_scale(weights, precision, wanted):
    found = autocast_dtype(nn.Linear(2, 2, dtype=weights), precision)
    assert found == wanted
    assert (loss_scale(found) is None) == (wanted != torch.float16)


def adapted(model, names=("default",)):
    for name in names:
        attach(model, LoraConfig(r=4, target_modules="all-linear"), name)
    return model


def test_adapters_on_quantized_layers_learn_in_float16(padded, repeating, tmp_path):
    model = adapted(quantized(llama()))
    own = settings(max_steps=6, learning_rate=2e-2, gradient_checkpointing=True)
    run(model, repeating([padded]), own, RunFolder(tmp_path))
    logged = lines(tmp_path)
    assert logged[-1]["loss"] < logged[0]["loss"] - 0.1
    assert logged[-1]["skipped_steps"] == 0


def test_adapters_that_train_together_have_scales_of_their_own(model, padded, repeating, tmp_path):
    names = ("one", "other")
    adapted(model, names)
    # the update of one is so steep that float16 overflows in its rows alone
    for name, factor in zip(names, (1.0, 1e6), strict=True):
        for parameter in adapters_of(model).parameters(name):
            nn.init.normal_(parameter, 0, 0.01 * factor)
    jobs = [Job(name, repeating([padded]), settings(max_steps=2), RunFolder(tmp_path / name)) for name in names]
    train_together(model, jobs)
    assert [line["skipped_steps"] for line in lines(tmp_path / "one")] == [0, 0]
    assert [line["skipped_steps"] for line in lines(tmp_path / "other")] == [1, 2]
