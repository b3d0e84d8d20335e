import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close

import lorasmith
from lorasmith import AdaLoraConfig
from lorasmith.attach import WEIGHTS_FILE, adapters_of, attach, load_adapter, save_adapter
from lorasmith.errors import AttachError
from lorasmith.methods import CONFIG_FILE
from tiny import IDS, llama, logits, shake

FIELDS = {"target_modules": ["q_proj", "v_proj"], "init_r": 4, "target_r": 2, "lora_alpha": 4, "task_type": "CAUSAL_LM"}
SCHEDULE = {"total_step": 10, "tinit": 2, "tfinal": 3, "deltaT": 2}


def train(build, steps: int, **fields: object) -> nn.Module:
    """A model of `build` (PEFT or this package) after steps of AdamW, from the same numbers in both."""
    model = build.get_peft_model(llama(), build.AdaLoraConfig(**(FIELDS | SCHEDULE | fields)))
    trained = [p for p in model.parameters() if p.requires_grad]
    with torch.no_grad():
        for parameter in trained:
            generator = torch.Generator().manual_seed(parameter.numel())
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    optimizer = torch.optim.AdamW(trained, lr=0.02)
    for step in range(1, steps + 1):
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
    return model


# before, at and after the last allocation, and where no allocation was due yet
@pytest.mark.parametrize("steps", [2, 4, 7, 10])
def test_a_training_keeps_and_learns_what_it_does_in_peft(steps, tmp_path):
    peft = pytest.importorskip("peft")
    theirs, ours = train(peft, steps), train(lorasmith, steps)
    theirs.save_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    configs = [json.loads((tmp_path / name / CONFIG_FILE).read_text()) for name in ("theirs", "ours")]
    assert configs[0]["rank_pattern"] == configs[1]["rank_pattern"]
    assert (configs[0]["rank_pattern"] is None) == (steps < 4)
    states = [load_file(tmp_path / name / WEIGHTS_FILE) for name in ("theirs", "ours")]
    assert states[0].keys() == states[1].keys()
    for key, value in states[0].items():
        # ten steps of AdamW magnify the rounding of sums in another order
        assert_close(states[1][key], value, atol=1e-4, rtol=1e-3)


# PEFT takes its own rank_pattern for one of module names
@pytest.mark.filterwarnings("ignore:The following rank_pattern keys:RuntimeWarning")
def test_what_was_trained_here_is_read_by_peft_and_back_with_equal_logits(tmp_path):
    peft = pytest.importorskip("peft")
    ours = train(lorasmith, 10).eval()
    ours.save_pretrained(tmp_path / "ours")
    theirs = peft.PeftModel.from_pretrained(llama(), tmp_path / "ours").eval()
    assert_close(logits(theirs), logits(ours), atol=2e-6, rtol=0)
    theirs = train(peft, 10).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = lorasmith.PeftModel.from_pretrained(llama(), tmp_path / "theirs")
    assert_close(logits(ours), logits(theirs), atol=2e-6, rtol=0)


def test_the_loss_has_pefts_regularizer():
    peft = pytest.importorskip("peft")
    theirs, ours = train(peft, 1), train(lorasmith, 1)
    losses = [model(input_ids=IDS, labels=IDS).loss.item() for model in (theirs, ours)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    ours.peft_config["default"].orth_reg_weight = 0.0
    assert ours(input_ids=IDS, labels=IDS).loss.item() < losses[1] - 0.1


def test_the_average_rank_ends_at_the_target_and_only_what_is_kept_is_saved(tmp_path):
    model = train(lorasmith, 10).get_base_model()
    sites = [site for _, site in adapters_of(model).sites("default")]
    assert sum(sum(site.kept) for site in sites) == 2 * len(sites)
    assert all((site.lora_E.weight.flatten() != 0).tolist() == site.kept for site in sites)
    save_adapter(model, tmp_path)
    rows = [len(value) for key, value in load_file(tmp_path / WEIGHTS_FILE).items() if key.endswith("lora_E")]
    assert sum(rows) == 2 * len(sites)


def test_a_reduced_adapter_trains_on_and_its_pattern_still_speaks_of_the_ranks_at_the_start(tmp_path):
    train(lorasmith, 10).save_pretrained(tmp_path)
    model = lorasmith.PeftModel.from_pretrained(llama(), tmp_path, is_trainable=True)
    before = logits(model)
    book = model.adapters
    [part] = book.training_parts().values()
    assert part.start == 8
    part._write_pattern()
    pattern = book.configs["default"].rank_pattern
    assert all(len(kept) == 4 for kept in pattern.values())
    assert sum(map(sum, pattern.values())) == 8
    model.save_pretrained(tmp_path / "again")
    again = lorasmith.PeftModel.from_pretrained(llama(), tmp_path / "again")
    assert torch.equal(logits(again), before)


def test_the_tensors_of_an_allocated_adapter_go_back_into_it():
    model = train(lorasmith, 10).eval()
    before = logits(model)
    state = {key: value.clone() for key, value in lorasmith.get_peft_model_state_dict(model).items()}
    shake(model)
    for _, site in model.adapters.sites("default"):
        site.keep(site.kept)
    lorasmith.set_peft_model_state_dict(model, state)
    assert torch.equal(logits(model), before)


def test_a_module_that_lost_all_its_ranks_does_nothing_and_is_saved_and_loaded(tmp_path):
    model = llama()
    base = logits(model)
    book = attach(model, AdaLoraConfig(**FIELDS))
    shake(model)
    for _, site in book.sites("default"):
        site.keep([False] * 4)
    book.configs["default"].rank_pattern = {f"{path}.lora_E": [False] * 4 for path, _ in book.sites("default")}
    assert_close(logits(model), base, atol=1e-6, rtol=0)
    save_adapter(model, tmp_path)
    other = llama()
    load_adapter(other, tmp_path)
    assert_close(logits(other), base, atol=1e-6, rtol=0)


def test_a_target_as_large_as_the_start_keeps_all_ranks():
    model = train(lorasmith, 10, target_r=4)
    assert all(all(kept) for kept in model.peft_config["default"].rank_pattern.values())
    assert len(model.peft_config["default"].rank_pattern) == 4


def test_what_adalora_never_reads_is_refused():
    with pytest.raises(AttachError, match="use_dora=True"):
        AdaLoraConfig(use_dora=True)


def test_allocating_without_gradients_says_when_to_call():
    model = train(lorasmith, 1)
    with pytest.raises(AttachError, match="between backward"):
        model.update_and_allocate(2)


def test_a_schedule_needs_steps_to_allocate_in():
    with pytest.raises(AttachError, match="tinit=5 and tfinal=5"):
        AdaLoraConfig(total_step=10, tinit=5, tfinal=5)
    model = lorasmith.get_peft_model(llama(), AdaLoraConfig(**FIELDS))
    model(input_ids=IDS, labels=IDS).loss.backward()
    with pytest.raises(AttachError, match="total_step=None"):
        model.update_and_allocate(1)


@pytest.mark.parametrize(
    "fields", [{"init_r": 0}, {"deltaT": 0}, {"beta1": 1.0}, {"orth_reg_weight": -1}, {"bias": "oft_only"}]
)
def test_values_out_of_range_are_refused(fields):
    with pytest.raises(AttachError, match=next(iter(fields))):
        AdaLoraConfig(**fields)
