"""Runs whose adapter begins at a part of the base or at directions of the data: killed and resumed they end equal."""

import pytest
import torch
from safetensors.torch import load_file

from lorasmith.attach import adapters_of
from lorasmith.models.load import load
from lorasmith.recipes import carry_out
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
