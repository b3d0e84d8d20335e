"""Runs whose adapter begins at a part of the base or by looking at the data: killed and resumed they end equal."""

import json

import pytest
import torch
from safetensors.torch import load_file

from lorasmith.attach import adapters_of, attach
from lorasmith.methods.shira import ShiraConfig
from lorasmith.models.load import load
from lorasmith.quantized import Scheme
from lorasmith.recipes import carry_out, data_start
from lorasmith.recipes.train import train

SMALL = {"max_steps": 4, "save_every": 2, "batch_size": 4, "max_length": 32, "samples": 0, "learning_rate": 1e-2}


def quiet(line):
    """Drops what a job tells its user."""


class Killed(Exception):
    """Stands for a kill in the middle of a run."""


def run(llama, stories, folder, start, echo=quiet, resume=False, **fields):
    loaded = load(llama)
    method = {"name": "lora", "r": 4, "init_lora_weights": start} | fields
    train(loaded.model, loaded.tokenizer, stories, output=folder, method=method, resume=resume, echo=echo, **SMALL)
    return loaded.model, load_file(folder / "adapter" / "adapter_model.safetensors")


def run_shira(base, stories, folder, mask, echo=quiet, resume=False, **fields):
    loaded = load(base, scheme=fields.pop("scheme", None))
    method = {"name": "shira", "r": 2, "mask_type": mask, "target_modules": "all-linear"}
    settings = SMALL | fields
    train(loaded.model, loaded.tokenizer, stories, output=folder, method=method, resume=resume, echo=echo, **settings)
    return loaded.model, load_file(folder / "adapter" / "adapter_model.safetensors")


def kill_in_step(number, monkeypatch):
    made = carry_out.loss_for

    def loss_for(*given):
        loss, calls = made(*given), []

        def counted(batch):
            calls.append(1)
            if len(calls) == number:
                raise Killed
            return loss(batch)

        return counted

    monkeypatch.setattr(carry_out, "loss_for", loss_for)


@pytest.mark.parametrize("start", ["pissa", "olora", "loftq", "eva"])
def test_killed_and_resumed_it_ends_the_same(start, llama, stories, tmp_path, monkeypatch):
    _, whole = run(llama, stories, tmp_path / "whole", start)
    with monkeypatch.context() as patch:
        kill_in_step(4, patch)
        with pytest.raises(Killed):
            run(llama, stories, tmp_path / "killed", start)
    _, resumed = run(llama, stories, tmp_path / "killed", start, resume=True)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_eva_begins_at_the_runs_own_batches_and_says_so(llama, stories, tmp_path):
    said = []
    model, saved = run(llama, stories, tmp_path / "run", "eva", said.append)
    (line,) = [line for line in said if line.startswith("EVA")]
    assert "batches" in line
    directions = load_file(tmp_path / "run" / "directions.safetensors")
    book = adapters_of(model)
    ranks = {path: site.rank for path, site in book.sites("default")}
    assert ranks == {path: len(a) for path, a in directions.items() if len(a)}
    assert sum(ranks.values()) == 14 * 4
    assert len(saved) == 2 * len(ranks)


def test_a_recipes_settings_of_a_start_are_checked_and_reach_it(llama, stories, tmp_path):
    model, _ = run(llama, stories, tmp_path / "run", "loftq", loftq_config={"loftq_iter": 2, "format": "fp4"})
    layer = model.model.layers[0].mlp.up_proj.base_layer
    assert layer.scheme.format == "fp4"
    model, _ = run(llama, stories, tmp_path / "eva", "eva", eva_config={"rho": 1.0})
    assert {site.rank for _, site in adapters_of(model).sites("default")} == {4}
    with pytest.raises(ValueError, match="rho"):
        run(llama, stories, tmp_path / "bad", "eva", eva_config={"rho": 0.5})


@pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled:UserWarning")
@pytest.mark.parametrize("mask", ["gradient", "snip"])
def test_shira_killed_and_resumed_keeps_its_places_and_looks_at_no_data_again(
    mask, llama, stories, tmp_path, monkeypatch
):
    _, whole = run_shira(llama, stories, tmp_path / "whole", mask)
    with monkeypatch.context() as patch:
        kill_in_step(4, patch)
        with pytest.raises(Killed):
            run_shira(llama, stories, tmp_path / "killed", mask)
    monkeypatch.setattr(data_start, "begin_at_gradients_", lambda *given, **options: pytest.fail("looked again"))
    said = []
    _, resumed = run_shira(llama, stories, tmp_path / "killed", mask, said.append, resume=True)
    assert any("places of" in line and "places.safetensors" in line for line in said)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert any(name.endswith("shira_indices") for name in whole)
    # the values have left zero
    assert any(bool(whole[name].any()) for name in whole if name.endswith("shira_weight"))


@pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled:UserWarning")
@pytest.mark.parametrize("fields", [{}, {"scheme": Scheme()}, {"gradient_checkpointing": True}])
def test_shiras_places_come_from_the_runs_own_batches_and_its_memory_is_planned(fields, llama, stories, tmp_path):
    said = []
    model, saved = run_shira(llama, stories, tmp_path / "run", "gradient", said.append, **fields)
    assert "SHIRA: places in 14 layers by the gradients of 32 batches" in said
    found = load_file(tmp_path / "run" / "places.safetensors")
    for path, site in adapters_of(model).sites("default"):
        assert torch.equal(found[f"{path}.shira_indices.weight"], site.shira_indices.weight)
        assert torch.equal(saved[f"base_model.model.{path}.shira_indices"], site.shira_indices.weight)
        assert not site.needs_data
    planned = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert planned["components"]["trainable parameters"] > 0


@pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled:UserWarning")
def test_an_adapter_of_the_callers_that_waits_for_data_sees_the_runs(llama, stories, tmp_path):
    loaded = load(llama)
    attach(loaded.model, ShiraConfig(r=2, mask_type="snip", target_modules="all-linear"))
    train(loaded.model, loaded.tokenizer, stories, output=tmp_path / "run", echo=quiet, **SMALL)
    other, _ = run_shira(llama, stories, tmp_path / "other", "snip")
    others = dict(adapters_of(other).sites("default"))
    for path, site in adapters_of(loaded.model).sites("default"):
        assert torch.equal(site.shira_indices.weight, others[path].shira_indices.weight)
