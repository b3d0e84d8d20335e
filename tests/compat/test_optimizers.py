"""PEFT's optimizers for LoRA, step by step beside the real ones."""

import copy

import pytest
import torch
from torch.testing import assert_close

import lorasmith
from lorasmith.errors import AttachError
from tiny import IDS, llama, mixtral, shake

peft = pytest.importorskip("peft")
theirs_of = pytest.importorskip("peft.optimizers")

FIELDS = {"target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 6}


def pair(**changes):
    """The same adapter in both libraries, away from its start."""
    theirs = shake(peft.get_peft_model(llama(), peft.LoraConfig(**(FIELDS | changes))))
    ours = lorasmith.get_peft_model(llama(), lorasmith.LoraConfig(**(FIELDS | changes)))
    state = {name.removesuffix(".weight"): value for name, value in theirs.named_parameters()}
    with torch.no_grad():
        for name, value in ours.named_parameters():
            if "lora" in name:
                value.copy_(state[name.removesuffix(".weight")])
    return ours, theirs


def train(model, optimizer, steps=5):
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
    return {name.removesuffix(".weight"): p.detach() for name, p in model.named_parameters() if "lora" in name}


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        # five steps of Adam, whose first moves are of the size of the rate whatever the gradient's rounding
        assert_close(value, theirs[name], atol=2e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["q_proj", "embed_tokens"]])
def test_loraplus_trains_as_pefts(targets):
    settings = {"lr": 1e-3, "loraplus_lr_ratio": 8.0, "loraplus_weight_decay": 0.1, "loraplus_lr_embedding": 1e-4}
    ours, theirs = pair(target_modules=targets)
    left = train(ours, lorasmith.create_loraplus_optimizer(ours, torch.optim.AdamW, **settings))
    right = train(theirs, theirs_of.create_loraplus_optimizer(theirs, torch.optim.AdamW, **settings))
    assert_same(left, right)


@pytest.mark.parametrize("rank_stabilized", [False, True])
def test_lorafa_trains_as_pefts(rank_stabilized, monkeypatch):
    # PEFT rounds the corrected gradient to bf16; without that the two are the same
    monkeypatch.setattr("peft.optimizers.lorafa.is_bf16_available", lambda *unused: False)
    ours, theirs = pair(use_rslora=rank_stabilized)
    settings = {"r": 4, "lora_alpha": 6, "lr": 1e-3, "weight_decay": 0.01}
    left = train(ours, lorasmith.create_lorafa_optimizer(ours, **settings))
    right = train(theirs, theirs_of.create_lorafa_optimizer(theirs, **settings))
    assert_same(left, right)
    assert not any(p.requires_grad for name, p in ours.named_parameters() if "lora_A" in name)


def test_its_state_comes_back_and_training_goes_on_as_if_never_stopped():
    ours, again = pair()[0], pair()[0]
    optimizer = lorasmith.create_lorafa_optimizer(ours, 4, 6, lr=1e-3)
    train(ours, optimizer, 2)
    other = lorasmith.create_lorafa_optimizer(again, 4, 6, lr=1e-3)
    again.load_state_dict(ours.state_dict())
    # torch's own loading shares the tensors
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    left, right = train(ours, optimizer, 2), train(again, other, 2)
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_lorafa_needs_lora():
    model = lorasmith.get_peft_model(llama(), lorasmith.IA3Config(task_type="CAUSAL_LM"))
    with pytest.raises(AttachError, match="needs a model with LoRA"):
        lorasmith.create_lorafa_optimizer(model, 4, 6, lr=1e-3)


def test_experts_have_pairs_too():
    model = lorasmith.get_peft_model(mixtral(), lorasmith.LoraConfig(target_modules="all-linear", r=2))
    optimizer = lorasmith.create_lorafa_optimizer(model, 2, 8, lr=1e-2)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert not any("lora_A" in name for name in trained)
    train(model, optimizer, 1)
