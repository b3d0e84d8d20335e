"""State in 8 bits: what is kept, how near it stays to 32 bits, and the step that the pair with AdamW has of its own."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close

from lorasmith.ops.remainder import joined
from lorasmith.training import run
from lorasmith.training.optimizers import Optimizer, build, optimizers
from lorasmith.training.optimizers.adamw import AdamW
from lorasmith.training.optimizers.eight_bit import SMALLEST, EightBit
from lorasmith.training.optimizers.placement import BesideParameter
from lorasmith.training.optimizers.rule import Slot
from lorasmith.training.run_folder import RunFolder
from lorasmith.training.settings import TrainingSettings
from tiny import llama

SETTINGS = TrainingSettings(optimizer="adamw8bit", weight_decay=0.1)


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stepped(optimizer, count, scale=1e-2):
    for step in range(count):
        for name, parameter in optimizer.parameters.items():
            parameter.grad = (seeded(*parameter.shape, seed=step + len(name)) * scale).to(parameter.dtype)
        optimizer.step(1e-3)
    return optimizer


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
def test_a_slot_reads_as_it_was_written_but_for_a_share_of_its_size(signed):
    slot, state = Slot("any", signed), EightBit()
    values = seeded(80, 60) if signed else seeded(80, 60).square()
    kept = state.zeros(slot, values)
    state.write_(slot, kept, values)
    read = state.read(slot, kept, values.shape)
    # levels lie 1.4 % of the largest value of a block apart at most, without the sign's bit half of that
    largest = values.abs().max().item()
    assert_close(read, values, rtol=0, atol=largest * (0.008 if signed else 0.004))
    assert not torch.equal(read, values)


@pytest.mark.parametrize("like", [torch.zeros(SMALLEST - 1), torch.zeros(SMALLEST, dtype=torch.float64)])
def test_small_tensors_and_f64_stay_as_they_are(like):
    state, slot = EightBit(), Slot("any")
    kept = state.zeros(slot, like)
    assert {part: tensor.dtype for part, tensor in kept.items()} == {"": like.dtype}
    values = torch.randn_like(like)
    state.write_(slot, kept, values)
    assert torch.equal(state.read(slot, kept, like.shape), values)


def test_what_is_kept_takes_a_quarter():
    optimizer = stepped(build({"w": nn.Parameter(seeded(128, 64))}, SETTINGS), 1)
    kept = {key: tensor for key, tensor in optimizer.state_tensors().items() if not key.startswith("steps")}
    assert {key: (tensor.dtype, tuple(tensor.shape)) for key, tensor in kept.items()} == {
        "exp_avg|codes|w": (torch.uint8, (8192,)),
        "exp_avg|scales|w": (torch.float32, (32,)),
        "exp_avg_sq|codes|w": (torch.uint8, (8192,)),
        "exp_avg_sq|scales|w": (torch.float32, (32,)),
    }


class Unfused(AdamW):
    """The same rule without a step of its own with the format."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_the_pairs_own_step_is_what_rule_and_format_do_one_after_the_other(dtype):
    start = {"w": seeded(128, 64).to(dtype), "small": seeded(5, 5).to(dtype), "vector": seeded(5000).to(dtype)}
    moved = []
    for rule in (AdamW(), Unfused()):
        params = {name: nn.Parameter(value.clone()) for name, value in start.items()}
        moved.append(stepped(Optimizer(params, rule, EightBit(), BesideParameter(), 0.1), 3))
    fused, apart = (optimizer.state_tensors() for optimizer in moved)
    assert fused.keys() == apart.keys()
    for key, kept in fused.items():
        if key.startswith("remainder"):
            # below the last bit of a parameter, with which it is compared
            name = key.split("|")[2]
            whole = [
                joined(each.parameters[name].detach(), tensors[key])
                for each, tensors in zip(moved, (fused, apart), strict=True)
            ]
            assert_close(*whole, rtol=1e-5, atol=1e-7)
        elif "|codes|" in key:
            # roundings of f32 in another order decide between two levels now and then
            assert (kept != apart[key]).float().mean() < 0.01
        else:
            assert_close(kept, apart[key], rtol=1e-5, atol=1e-7)
    for name, parameter in moved[0].parameters.items():
        assert_close(parameter, moved[1].parameters[name], rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=2e-6)


def test_the_fused_step_serves_every_rule_and_format_that_have_one(monkeypatch):
    called = []
    monkeypatch.setattr(
        "lorasmith.training.optimizers.fused.adam8bit_", lambda parameter, *rest: called.append(parameter.shape)
    )
    stepped(build({"w": nn.Parameter(seeded(128, 64)), "small": nn.Parameter(seeded(5, 5))}, SETTINGS), 1)
    assert called == [torch.Size([128, 64])]


def trained(tmp_path, batch, repeating, optimizer):
    """A whole small model after 25 steps: the loss, and the state that is kept."""
    model = llama(hidden_size=64, intermediate_size=96, vocab_size=80, pad_token_id=0)
    settings = TrainingSettings(
        max_steps=25, learning_rate=3e-3, schedule="constant", optimizer=optimizer, save_every=None
    )
    folder = RunFolder(tmp_path / optimizer)
    loss = run(model, repeating([batch]), settings, folder).loss
    return loss, load_file(folder.checkpoints / "step-000025" / "optimizer.safetensors")


def test_training_in_8_bits_comes_to_nearly_the_loss_of_32(tmp_path, padded, repeating):
    exact, _ = trained(tmp_path, padded, repeating, "adamw")
    found, state = trained(tmp_path, padded, repeating, "adamw8bit")
    assert sum("|codes|" in key for key in state) >= 10
    # the start is at ln 80 = 4.38
    assert exact < 1.5
    assert found == pytest.approx(exact, rel=0.05)
    assert found != exact


def test_a_name_stands_for_choices_that_are_made_apart():
    plain, eight = optimizers["adamw"], optimizers["adamw8bit"]
    assert eight.rule(SETTINGS) == plain.rule(SETTINGS)
    assert (eight.placement, eight.gradients) == (plain.placement, plain.gradients)
