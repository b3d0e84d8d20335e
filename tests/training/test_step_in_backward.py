"""Parameters that move in the backward pass go where the ordinary step takes them, and few gradients are alive."""

import json

import pytest
import torch

from lorasmith.attach import attach
from lorasmith.errors import RecipeError, RunError
from lorasmith.methods.adalora.config import AdaLoraConfig
from lorasmith.methods.lora import LoraConfig
from lorasmith.training import run
from lorasmith.training.checkpoint import trainable_parameters
from lorasmith.training.loss import loss_for
from lorasmith.training.optimizers import build
from lorasmith.training.run_folder import RunFolder
from lorasmith.training.settings import TrainingSettings
from lorasmith.training.step import TrainingStep
from lorasmith.training.step_in_backward import moved_in_backward
from lorasmith.training.together import Job, train_together

UNCLIPPED = {"max_steps": 4, "clip": None, "learning_rate": 1e-2, "save_every": 2}


def ran(folder, model, batches, repeating, **changes):
    """What a run leaves: its lines, its trained tensors, its optimizer's state."""
    run(model, repeating(batches), TrainingSettings(**(UNCLIPPED | changes)), RunFolder(folder))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    numbers = [(line["loss"], line["grad_norm"]) for line in lines]
    return numbers, {name: p.detach().clone() for name, p in trainable_parameters(model).items()}


def with_lora(model, **changes):
    torch.manual_seed(1)
    attach(model, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=4, **changes))
    return model


CASES = {
    "full": ({}, lambda model: model),
    "bf16": ({}, lambda model: model.bfloat16()),
    "lora": ({"loraplus_lr_ratio": 4.0, "weight_decay": 0.1}, with_lora),
    "dora, recomputed": ({"gradient_checkpointing": True}, lambda model: with_lora(model, use_dora=True)),
    "recomputed": ({"gradient_checkpointing": True}, with_lora),
    "lorafa": ({"optimizer": "lorafa"}, with_lora),
    "8 bits": ({"optimizer": "adamw8bit"}, lambda model: model),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_the_ordinary_step_bit_for_bit(case, tmp_path, new_model, padded, packed, repeating, monkeypatch):
    changes, made = CASES[case]
    monkeypatch.setattr("lorasmith.training.optimizers.eight_bit.SMALLEST", 512)
    ordinary, expected = ran(tmp_path / "ordinary", made(new_model()), [padded], repeating, **changes)
    numbers, found = ran(tmp_path / "moving", made(new_model()), [padded], repeating, step_in_backward=True, **changes)
    assert numbers == ordinary
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_each_gradient_is_freed_before_the_last_one_comes(new_model, padded):
    model = new_model()
    parameters = trainable_parameters(model)
    optimizer = build(parameters, TrainingSettings())
    alive = []
    move = optimizer.move

    def counted(name, learning_rate):
        alive.append(sum(parameter.grad is not None for parameter in parameters.values()))
        move(name, learning_rate)

    optimizer.move = counted
    step = TrainingStep(parameters, optimizer, loss_for(model, "causal"), None, None, in_backward=True)
    step(1, [padded], 1e-3)
    assert len(alive) == len(parameters) > 20
    # those of one operation come together
    assert max(alive) <= 3


def test_no_hook_is_left_behind(new_model, padded):
    model = new_model()
    parameters = trainable_parameters(model)
    with pytest.raises(ZeroDivisionError), moved_in_backward(build(parameters, TrainingSettings()), 0.1):
        raise ZeroDivisionError
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    loss_for(model, "causal")(padded).backward()
    assert all(torch.equal(before[name], parameter) for name, parameter in parameters.items())
    assert all(parameter.grad is not None for parameter in parameters.values())


def test_a_gradient_that_is_not_finite_is_still_an_error(model, padded):
    model.model.layers[0].mlp.up_proj.weight.register_hook(lambda gradient: gradient * float("nan"))
    parameters = trainable_parameters(model)
    optimizer = build(parameters, TrainingSettings())
    step = TrainingStep(parameters, optimizer, loss_for(model, "causal"), None, None, in_backward=True)
    with pytest.raises(RunError, match="step 2: the gradient's norm is nan"):
        step(2, [padded], 0.1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"accumulation": 4, "clip": None}, r"accumulation=4 has nothing to add to; set training.accumulation: 1"),
        ({}, r"clip=1.0 limits is known; set training.clip: null"),
    ],
)
def test_what_needs_all_gradients_at_once_is_refused_by_name(changes, said):
    with pytest.raises(RecipeError, match=f"training.step_in_backward=true .*{said}"):
        TrainingSettings(step_in_backward=True, **changes)


def test_a_method_with_a_part_in_the_step_is_refused(tmp_path, new_model, padded, repeating):
    model = new_model()
    config = AdaLoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], total_step=4, tinit=1, tfinal=1)
    attach(model, config)
    with pytest.raises(RecipeError, match="method of adapter 'default' takes part in a step"):
        ran(tmp_path, model, [padded], repeating, step_in_backward=True)


def test_float16_which_may_overflow_is_refused(tmp_path, new_model, padded, repeating):
    model = new_model()
    for parameter in model.model.layers[0].parameters():
        # one that auto finds float16 by
        parameter.requires_grad_(False).data = parameter.data.half()
    with pytest.raises(RecipeError, match="before it is known whether float16 overflowed"):
        ran(tmp_path, model, [padded], repeating, step_in_backward=True)


def test_adapters_that_train_together_refuse_it(tmp_path, new_model, padded, repeating):
    model = with_lora(new_model())
    settings = TrainingSettings(step_in_backward=True, **UNCLIPPED)
    with pytest.raises(RecipeError, match="of adapter 'default' is for one adapter that trains alone"):
        train_together(model, [Job("default", repeating([padded]), settings, RunFolder(tmp_path))])
