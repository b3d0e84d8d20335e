"""LoRA+ and LoRA-FA as choices of a run."""

import runpy
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from lorasmith.attach import attach
from lorasmith.errors import RecipeError
from lorasmith.methods.ia3 import IA3Config
from lorasmith.methods.lora import LoraConfig
from lorasmith.models.packed_attention import enable_packing
from lorasmith.planning import PlanSettings, plan
from lorasmith.training import run
from lorasmith.training.checkpoint import trainable_parameters
from lorasmith.training.optimizers import build, factor_pairs, frozen_inputs
from lorasmith.training.optimizers.gradients import inverse_gram, projected
from lorasmith.training.run_folder import RunFolder
from lorasmith.training.settings import TrainingSettings
from tiny import IDS, llama, mixtral, quantized, shake

KILLED_RUN = Path(__file__).parents[1] / "killed_run.py"
ALL_LINEAR = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=4, lora_alpha=6)


def adapted(build=llama, config=ALL_LINEAR):
    model = build()
    attach(model, config)
    return shake(model, 0.01)


def stepped(model, **changes):
    settings = TrainingSettings(**changes)
    parameters = trainable_parameters(model)
    before = {name: p.detach().clone() for name, p in parameters.items()}
    pairs = factor_pairs(model, parameters)
    optimizer = build(parameters, settings, pairs)
    with frozen_inputs(model, settings.optimizer == "lorafa"):
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step(1e-3)
    return optimizer, {name: p.detach() - before[name] for name, p in parameters.items()}


def test_loraplus_moves_b_as_much_further_as_it_says():
    # Adam's first step is of the size of the learning rate, whatever the gradient
    (_, plain), (_, faster) = stepped(adapted()), stepped(adapted(), loraplus_lr_ratio=16.0)
    for name, move in faster.items():
        # the difference of two f32 weights of size 0.1 keeps 5 digits of a move of 1e-3
        assert_close(move, plain[name] * (16 if "lora_B" in name else 1), atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("build", [llama, mixtral, lambda: quantized(llama())])
def test_lorafa_leaves_a_alone_and_keeps_no_state_for_it(build):
    optimizer, moves = stepped(adapted(build), optimizer="lorafa")
    assert all(torch.equal(move, torch.zeros_like(move)) == ("lora_A" in name) for name, move in moves.items())
    assert not any("lora_A" in key for key in optimizer.state_tensors())


@pytest.mark.parametrize("build", [llama, mixtral])
def test_the_corrected_gradient_moves_the_weight_along_its_own_gradient_in_the_rows_of_a(build):
    model = adapted(build)
    parameters = trainable_parameters(model)
    for pair in factor_pairs(model, parameters).values():
        generator = torch.Generator().manual_seed(1)
        a_ERK = pair.a.detach().unflatten(0, (pair.experts, -1))
        full_EOK = torch.randn(pair.experts, pair.b.shape[0], a_ERK.shape[-1], generator=generator)
        # the chain rule through W + s B A
        g_EOR = pair.scaling * full_EOK @ a_ERK.mT
        g_OX = g_EOR.permute(1, 2, 0).flatten(1)
        seen_EOR = projected(g_OX, inverse_gram(pair), pair).unflatten(1, (-1, pair.experts)).permute(2, 0, 1)
        moved = pair.scaling * seen_EOR @ a_ERK
        onto_rows = full_EOK @ torch.linalg.pinv(a_ERK) @ a_ERK
        assert_close(moved, onto_rows, atol=1e-4, rtol=1e-3)


def test_the_plan_counts_what_a_frozen_a_saves():
    model = adapted(llama)
    settings = PlanSettings(batch_size=2, length=16, baseline=0)
    plain = plan(model, settings).components
    with frozen_inputs(model, True):
        frozen = plan(model, settings).components
    trained = [p for name, p in model.named_parameters() if "lora_B" in name]
    bytes_of_b = sum(p.numel() for p in trained) * 4
    assert frozen["gradients"] == bytes_of_b
    assert frozen["optimizer state"] == 2 * bytes_of_b
    # the inputs of layers that nothing else keeps
    assert frozen["activations kept for backward"] < plain["activations kept for backward"]
    assert all(p.requires_grad for name, p in model.named_parameters() if "lora_A" in name)


@pytest.mark.parametrize("changes", [{"optimizer": "lorafa"}, {"loraplus_lr_ratio": 4.0}])
def test_without_loras_factors_they_are_refused(changes):
    model = adapted(config=IA3Config(task_type="CAUSAL_LM"))
    with pytest.raises(RecipeError, match="is for LoRA's factors"):
        stepped(model, **changes)


def test_a_ratio_must_be_above_zero():
    with pytest.raises(RecipeError, match="loraplus_lr_ratio=0 must be above 0"):
        TrainingSettings(loraplus_lr_ratio=0)


def ran(folder, steps, *, seed=0, resume=False):
    """Train an adapter with both, its A drawn from a seed of its own, and return its tensors."""
    model = llama(vocab_size=80)
    assert enable_packing(model) is None
    torch.manual_seed(seed)
    attach(model, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=4, lora_dropout=0.1))
    settings = TrainingSettings(
        max_steps=steps, schedule="constant", warmup=0, optimizer="lorafa", loraplus_lr_ratio=4.0, save_every=2
    )
    loader = runpy.run_path(str(KILLED_RUN))["build_loader"]()
    run(model, loader, settings, RunFolder(folder), resume=resume)
    return {name: p.detach().clone() for name, p in trainable_parameters(model).items()}


def test_a_resumed_run_is_bit_equal_whatever_its_a_was_drawn_as(tmp_path):
    whole = ran(tmp_path / "whole", 6)
    ran(tmp_path / "halved", 4)
    resumed = ran(tmp_path / "halved", 6, seed=9, resume=True)
    assert resumed.keys() == whole.keys()
    assert any("lora_A" in name for name in whole)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
