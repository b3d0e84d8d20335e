import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from lorasmith.attach import adapters_of
from lorasmith.errors import RecipeError, RunError
from lorasmith.recipes.evaluate import EvaluationRequest, evaluate
from lorasmith.recipes.fine_tune import fine_tune, resume_run
from lorasmith.recipes.prepare import prepare
from lorasmith.recipes.reading import build_recipe, read_recipe
from lorasmith.recipes.subject import find_subject, load_subject
from lorasmith.training.loggers.wandb import WeightsAndBiases
from lorasmith.training.step import TrainingStep

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "recipes"
METHODS = [
    {"name": "lora"},
    {"name": "ia3"},
    {"name": "bottleneck"},
    {"name": "prompt_tuning", "num_virtual_tokens": 4},
    {"name": "p_tuning", "num_virtual_tokens": 4, "encoder_reparameterization_type": "LSTM", "encoder_hidden_size": 8},
    {"name": "prefix_tuning", "num_virtual_tokens": 4, "prefix_projection": True},
    {"name": "bottleneck", "placement": "parallel"},
    {"name": "shira", "r": 2, "target_modules": "attention", "layers": "last-1"},
    {"name": "full", "layers": "last-1"},
    {"name": "ln_tuning"},
]


def quiet(line):
    """Drops what a job tells its user."""


def recipe(model, data, output, **changes):
    fields = {
        "model": str(model),
        "data": {"train": str(data), "validation_fraction": 0.2, "max_length": 32},
        "training": {"max_steps": 4, "batch_size": 2, "learning_rate": 1e-2, "evaluate_every": 2, "save_every": 1},
        "evaluation": {"samples": 2, "max_new_tokens": 4},
        "output": str(output),
    }
    for section, values in changes.items():
        fields[section] = {**fields.get(section, {}), **values} if isinstance(values, dict) else values
    return build_recipe(fields, "the test")


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line.get("loss"), line.get("eval_loss")) for line in lines]


def test_a_run_folder_holds_all_that_passes_between_commands(llama, stories, tmp_path):
    told = []
    finished = fine_tune(recipe(llama, stories, tmp_path / "run"), told.append)
    run = tmp_path / "run"
    for name in ("recipe.yaml", "plan.json", "metrics.jsonl", "evaluation.json", "summary.json", "report.html"):
        assert (run / name).is_file(), name
    assert (run / "adapter" / "adapter_model.safetensors").is_file()
    assert (run / "adapter" / "tokenizer.json").is_file()
    assert sorted(path.name for path in (run / "checkpoints").iterdir())[-1] == "step-000004"
    assert finished.after["loss"]["value"] < finished.before["loss"]["value"]
    page = (run / "adapter" / "README.md").read_text()
    assert f"- Data: {stories.name} (" in page
    assert f"{finished.before['loss']['value']:.4f}" in page
    assert f"{finished.after['loss']['value']:.4f}" in page
    assert str(llama.parent) not in page
    assert any("parameters train" in line for line in told)


def test_the_recipe_of_a_run_states_everything(llama, stories, tmp_path):
    fine_tune(recipe(llama, stories, tmp_path / "run"), quiet)
    stated = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert stated["training"]["weight_decay"] == 0.0
    assert stated["model"]["path"] == str(llama)
    assert stated["method"]["target_modules"] == "all-linear"


def test_evaluation_says_what_changed_and_shows_samples(llama, stories, tmp_path):
    fine_tune(recipe(llama, stories, tmp_path / "run"), quiet)
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    change = found["after"]["loss"]["value"] - found["before"]["loss"]["value"]
    assert found["change"]["loss"]["value"] == pytest.approx(change, abs=1e-9)
    assert len(found["samples"]) == 2
    assert all(sample["before"] != sample["after"] for sample in found["samples"])
    assert all(sample["prompt"].startswith("the ") for sample in found["samples"])


def test_the_scores_of_a_run_are_those_of_its_saved_adapter(llama, stories, tmp_path):
    finished = fine_tune(recipe(llama, stories, tmp_path / "run"), quiet)
    scores = evaluate(EvaluationRequest(str(tmp_path / "run"), device="cpu"))
    assert set(scores) == {"base", "run"}
    # packed rows in training, padded rows here: another order of f32 sums
    assert scores["base"]["loss"].value == pytest.approx(finished.before["loss"]["value"], abs=1e-5)
    assert scores["run"]["loss"].value == pytest.approx(finished.after["loss"]["value"], abs=1e-5)


class Killed(Exception):
    """Stands for a process that ended."""


def test_a_resumed_run_equals_an_uninterrupted_one(llama, stories, tmp_path, monkeypatch):
    whole = fine_tune(recipe(llama, stories, tmp_path / "whole"), quiet)
    step = TrainingStep.__call__

    def dies(self, number, *arguments):
        if number == 3:
            raise Killed
        return step(self, number, *arguments)

    monkeypatch.setattr(TrainingStep, "__call__", dies)
    with pytest.raises(Killed):
        fine_tune(recipe(llama, stories, tmp_path / "broken"), quiet)
    monkeypatch.setattr(TrainingStep, "__call__", step)
    # nothing but the folder is needed, wherever it lies now
    shutil.move(tmp_path / "broken", tmp_path / "moved")
    resumed = resume_run(tmp_path / "moved", quiet)
    assert losses(tmp_path / "moved") == losses(tmp_path / "whole")
    assert resumed.after == whole.after
    assert resumed.before == whole.before
    tensors = load_file(whole.adapter / "adapter_model.safetensors")
    again = load_file(resumed.adapter / "adapter_model.safetensors")
    assert all(torch.equal(tensors[name], again[name]) for name in tensors)


def test_resuming_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"no recipe\.yaml"):
        resume_run(tmp_path, quiet)


def test_a_failed_run_keeps_what_it_had(llama, stories, tmp_path):
    wild = {"learning_rate": 1e30, "clip": None, "warmup": 0, "max_steps": 8}
    with pytest.raises(RunError, match="last good checkpoint"):
        fine_tune(recipe(llama, stories, tmp_path / "run", training=wild), quiet)
    assert list((tmp_path / "run" / "checkpoints").iterdir())


def test_a_classifier_is_trained_saved_and_scored_with_its_labels(bert, reviews, tmp_path):
    changes = {"max_steps": 30, "learning_rate": 2e-2, "batch_size": 8}
    job = recipe(bert, reviews, tmp_path / "run", task="classification", quantization="none", training=changes)
    finished = fine_tune(job, quiet)
    stated = read_recipe(tmp_path / "run" / "recipe.yaml")
    assert stated.data.labels == ["no", "yes"]
    # the class is the first word: a head that learned anything knows it
    assert finished.after["accuracy"]["value"] > 0.9
    scores = evaluate(EvaluationRequest(str(tmp_path / "run"), device="cpu"))
    assert scores["run"]["accuracy"].value == finished.after["accuracy"]["value"]


def test_a_classifier_that_left_its_run_is_scored_by_its_class_names(bert, reviews, tmp_path):
    changes = {"max_steps": 2, "batch_size": 8}
    job = recipe(bert, reviews, tmp_path / "run", task="classification", quantization="none", training=changes)
    fine_tune(job, quiet)
    shutil.copytree(tmp_path / "run" / "adapter", tmp_path / "alone")
    subject = find_subject(str(tmp_path / "alone"))
    assert subject.storage.labels == ("no", "yes")
    assert load_subject(subject, "cpu").model.config.id2label == {0: "no", 1: "yes"}
    # labels that are words need names
    asked = EvaluationRequest(str(tmp_path / "alone"), data=str(reviews), device="cpu")
    of_the_run = EvaluationRequest(str(tmp_path / "run"), data=str(reviews), device="cpu")
    assert evaluate(asked)["alone"] == evaluate(of_the_run)["run"]


def test_added_tokens_travel_with_the_adapter(llama, stories, tmp_path):
    added = {"add_tokens": ["<thing>"], "add_special_tokens": ["<end>"]}
    fine_tune(recipe(llama, stories, tmp_path / "run", tokenizer=added), quiet)
    loaded = load_subject(find_subject(str(tmp_path / "run")), "cpu")
    base = load_subject(find_subject(str(llama)), "cpu")
    assert loaded.tokenizer.convert_tokens_to_ids("<thing>") == len(base.tokenizer)
    assert loaded.model.get_input_embeddings().num_embeddings == len(base.tokenizer) + 2
    scores = evaluate(EvaluationRequest(str(tmp_path / "run"), device="cpu"))
    after = json.loads((tmp_path / "run" / "evaluation.json").read_text())["after"]
    assert scores["run"]["loss"].value == pytest.approx(after["loss"]["value"], abs=1e-5)


def test_new_tokens_are_told_apart_from_trained_ones(llama, stories, tmp_path):
    added = {"add_tokens": ["<thing>"]}
    frozen = prepare(recipe(llama, stories, tmp_path / "run", tokenizer=added))
    assert any("1 tokens are new" in str(finding) for finding in frozen.findings)
    whole = {"name": "lora", "modules_to_save": ["embed_tokens", "lm_head"]}
    trained = prepare(recipe(llama, stories, tmp_path / "run", tokenizer=added, method=whole))
    assert not any("are new" in str(finding) for finding in trained.findings)


def test_trained_embeddings_of_new_tokens_come_back_with_the_adapter(llama, stories, tmp_path):
    whole = {"name": "lora", "modules_to_save": ["embed_tokens", "lm_head"]}
    job = recipe(llama, stories, tmp_path / "run", tokenizer={"add_tokens": ["<thing>"]}, method=whole)
    finished = fine_tune(job, quiet)
    scores = evaluate(EvaluationRequest(str(tmp_path / "run"), device="cpu"))
    assert scores["run"]["loss"].value == pytest.approx(finished.after["loss"]["value"], abs=1e-5)


def test_generation_stops_where_the_answers_of_the_data_end(llama, stories, tmp_path):
    fine_tune(recipe(llama, stories, tmp_path / "run"), quiet)
    loaded = load_subject(find_subject(str(tmp_path / "run")), "cpu")
    assert loaded.tokenizer.eos_token_id in loaded.model.generation_config.eos_token_id


def test_a_missing_logger_is_told_before_weights_are_read(llama, stories, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[WeightsAndBiases.__module__], "wandb", None)
    monkeypatch.setattr("lorasmith.recipes.fine_tune.load_base", None)
    with pytest.raises(RecipeError, match=r"lorasmith\[wandb\]"):
        fine_tune(recipe(llama, stories, tmp_path / "run", loggers=["wandb"]), quiet)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method["name"])
def test_every_kind_of_method_runs_from_a_recipe(llama, stories, tmp_path, method):
    finished = fine_tune(recipe(llama, stories, tmp_path / "run", method=method), quiet)
    scores = evaluate(EvaluationRequest(str(tmp_path / "run"), device="cpu"))
    assert scores["run"]["loss"].value == pytest.approx(finished.after["loss"]["value"], abs=1e-5)


def test_preparing_reads_no_weight_and_touches_no_disk(llama, stories, tmp_path):
    headers = tmp_path / "headers"
    shutil.copytree(llama, headers)
    weights = headers / "model.safetensors"
    # the header stays; the data becomes NaN, which any read refuses
    raw = weights.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    weights.write_bytes(raw[:start] + b"\xff" * (len(raw) - start))
    prepared = prepare(recipe(headers, stories, tmp_path / "run"))
    assert {parameter.device.type for parameter in prepared.model.parameters()} == {"meta"}
    assert len(adapters_of(prepared.model).sites("default")) == 14
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_example_recipes_are_valid(path):
    assert read_recipe(path).method["name"] == "lora"
