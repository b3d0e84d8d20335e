"""AdamW is torch's, and its state comes back bit for bit."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lorasmith.errors import RecipeError, RunError
from lorasmith.methods import FactorPair
from lorasmith.ops.remainder import joined
from lorasmith.training.optimizers import build, optimizers
from lorasmith.training.settings import TrainingSettings

SETTINGS = TrainingSettings(betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1)


def parameters(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return {
        "matrix": nn.Parameter(torch.randn(5, 7, generator=generator).to(dtype)),
        "vector": nn.Parameter(torch.randn(5, generator=generator).to(dtype)),
    }


def large(dtype=torch.float32):
    """With one tensor that is kept in blocks where state is, the last of them partial."""
    generator = torch.Generator().manual_seed(9)
    return parameters(dtype) | {"large": nn.Parameter(torch.randn(70, 61, generator=generator).to(dtype))}


# a pair of factors, for the optimizers that know them
PAIRS = {"matrix": FactorPair(nn.Parameter(torch.eye(7, 9)), nn.Parameter(torch.zeros(5, 7)), 2.0)}


def give_gradients(params, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in params.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def test_adamw_moves_as_torchs_adamw_does():
    ours, theirs = parameters(), parameters()
    optimizer = build(ours, SETTINGS)
    groups = [
        {"params": [theirs["matrix"]], "weight_decay": 0.1},
        {"params": [theirs["vector"]], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, betas=SETTINGS.betas, eps=SETTINGS.eps, foreach=False)
    for step in range(1, 30):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        for group in reference.param_groups:
            group["lr"] = 0.1 / step
        optimizer.step(0.1 / step)
        reference.step()
    for name in ours:
        # one rounding a step may differ, because the scalars are folded in another order
        assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
# those that page need a GPU; test_paged.py has them on a stand-in
@pytest.mark.parametrize("name", [name for name in optimizers if not name.startswith("paged_")])
def test_saved_and_loaded_it_goes_on_bit_equal(name, dtype):
    settings = TrainingSettings(optimizer=name, weight_decay=0.1)
    params = large(dtype)
    optimizer = build(params, settings, PAIRS)
    for step in range(3):
        give_gradients(params, step)
        optimizer.step(0.01)
    copies = {key: nn.Parameter(value.detach().clone()) for key, value in params.items()}
    resumed = build(copies, settings, PAIRS)
    resumed.load_state(optimizer.steps, {key: value.clone() for key, value in optimizer.state_tensors().items()})
    for step in range(3, 6):
        for each, moved in ((params, optimizer), (copies, resumed)):
            give_gradients(each, step)
            moved.step(0.01)
    assert all(torch.equal(params[key], copies[key]) for key in params)


def test_steps_smaller_than_the_last_bit_of_bf16_add_up():
    weight = nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16))
    optimizer = build({"w": weight}, TrainingSettings())
    for _ in range(100):
        weight.grad = torch.ones_like(weight)
        optimizer.step(1e-4)
    # Adam's step is the learning rate where all gradients are equal: 1 - 100 * 1e-4, while bf16 steps by 1/256 below 1
    assert_close(weight.float(), torch.full((4, 4), 0.99), atol=1 / 256, rtol=0)
    assert weight[0, 0] != 1


def test_a_parameter_without_a_gradient_neither_moves_nor_decays():
    params = parameters()
    before = params["matrix"].detach().clone()
    optimizer = build(params, SETTINGS)
    params["vector"].grad = torch.ones(5)
    optimizer.step(0.1)
    assert torch.equal(params["matrix"], before)
    assert {key.split("|")[2] for key in optimizer.state_tensors()} == {"vector"}


def test_state_of_a_stranger_is_refused_by_name():
    optimizer = build(parameters(), SETTINGS)
    with pytest.raises(RunError, match="'other', which this model does not train"):
        optimizer.load_state(1, {"exp_avg||other": torch.zeros(1)})
    with pytest.raises(RunError, match="keeps 'momentum' of 'vector', which this run's does not"):
        optimizer.load_state(1, {"momentum||vector": torch.zeros(5)})


def test_state_that_is_not_whole_is_refused():
    optimizer = build(parameters(torch.bfloat16), SETTINGS)
    with pytest.raises(RunError, match="has no 'exp_avg_sq' of 'vector'"):
        optimizer.load_state(1, {"exp_avg||vector": torch.zeros(5), "remainder||vector": torch.zeros(5)})


def test_an_unknown_optimizer_is_named_with_the_nearest():
    with pytest.raises(RecipeError, match="Did you mean 'adamw'"):
        build(parameters(), TrainingSettings(optimizer="adam_w"))


def test_a_parameter_whose_first_gradient_comes_late_moves_as_torchs_adamw_moves_it():
    ours, theirs = parameters(), parameters()
    optimizer = build(ours, TrainingSettings())
    reference = torch.optim.AdamW(theirs.values(), weight_decay=0.0, foreach=False)
    for step in range(1, 40):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        if step < 30:
            ours["matrix"].grad = theirs["matrix"].grad = None
        reference.param_groups[0]["lr"] = 0.1
        optimizer.step(0.1)
        reference.step()
    # as above
    assert_close(ours["matrix"], theirs["matrix"], rtol=1e-5, atol=1e-6)


def test_state_of_an_older_checkpoint_counts_all_steps_as_each_parameters_own():
    params = parameters()
    optimizer = build(params, TrainingSettings())
    give_gradients(params, 0)
    optimizer.step(0.1)
    older = {key: tensor for key, tensor in optimizer.state_tensors().items() if not key.startswith("steps")}
    resumed = build(params, TrainingSettings())
    resumed.load_state(optimizer.steps, older)
    assert resumed.state_tensors()["steps||matrix"] == 1


def test_values_written_into_a_16_bit_parameter_between_steps_count():
    weight = nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16))
    optimizer = build({"w": weight}, TrainingSettings())
    for step in range(2):
        weight.grad = torch.ones_like(weight)
        optimizer.step(1e-4)
        if step == 0:
            # as AdaLoRA does with a rank
            weight.data[0] = 0
    assert_close(weight[0], torch.full((4,), -1e-4, dtype=torch.bfloat16))
    # the others go on from where their masters are, below the last bit of bf16
    whole = joined(weight.detach(), optimizer.state_tensors()["remainder||w"])
    assert_close(whole[1], torch.full((4,), 1 - 2e-4))


@pytest.mark.parametrize("key", ["exp_avg||vector", "exp_avg|scale|matrix", "remainder||matrix", "steps||vector"])
def test_state_of_another_shape_is_refused_by_name(key):
    optimizer = build(parameters(torch.bfloat16), SETTINGS)
    with pytest.raises(RunError, match=key.split("|")[2] + r".*does not fit the parameter"):
        optimizer.load_state(1, {key: torch.zeros(3)})
