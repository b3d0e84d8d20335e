import dataclasses

import pytest
import yaml

from lorasmith.errors import RecipeError
from lorasmith.methods.lora import LoraConfig
from lorasmith.recipes.method_section import method_config
from lorasmith.recipes.reading import build_recipe, parse_override, read_recipe, recipe_yaml, write_recipe
from lorasmith.recipes.recipe import Recipe
from lorasmith.recipes.sections import Section
from lorasmith.training import TrainingSettings

SMALL = {"model": "some/model", "data": "train.jsonl"}


def written(folder, text):
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def refusal(folder, text, *overrides):
    with pytest.raises(RecipeError) as caught:
        read_recipe(written(folder, text), [parse_override(item) for item in overrides])
    message = str(caught.value)
    assert "\n" not in message
    return message


def every_section(cls=Recipe, seen=()):
    yield cls
    for other in Section.__subclasses__():
        if other is not cls and other not in seen:
            yield other


@pytest.mark.parametrize("section", list(every_section()))
def test_every_field_says_what_it_means(section):
    silent = [name for name, field in section.model_fields.items() if not field.description]
    assert not silent


def test_bare_strings_stand_for_sections():
    recipe = build_recipe({**SMALL, "method": "lora", "quantization": "fp4"}, "here")
    assert (recipe.model.path, recipe.data.train[0].path) == ("some/model", "train.jsonl")
    assert (recipe.method["name"], recipe.quantization.format) == ("lora", "fp4")


def test_quantization_none_keeps_the_base_dense():
    assert build_recipe({**SMALL, "quantization": "none"}, "here").quantization is None


def test_adapters_go_on_all_linear_layers_by_default():
    assert build_recipe(SMALL, "here").method["target_modules"] == "all-linear"


def test_a_written_recipe_states_every_default_and_reads_back_equal(tmp_path):
    recipe = build_recipe({**SMALL, "method": {"name": "lora", "r": 4}}, "here").resolved()
    write_recipe(recipe, tmp_path / "recipe.yaml")
    stated = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    assert set(stated) == set(Recipe.model_fields)
    assert set(stated["training"]) == set(type(recipe.training).model_fields)
    assert (stated["method"]["r"], stated["method"]["lora_dropout"]) == (4, 0.0)
    assert read_recipe(tmp_path / "recipe.yaml") == recipe


def test_the_training_section_has_the_fields_and_defaults_of_its_settings():
    section = build_recipe(SMALL, "here").training
    assert section.settings(seed=0) == TrainingSettings()
    # the direction of the best metric follows from the metric, the seed is the recipe's
    derived = {"higher_is_better", "seed"}
    assert set(type(section).model_fields) == {field.name for field in dataclasses.fields(TrainingSettings)} - derived


def test_a_better_accuracy_is_a_higher_one():
    fields = {**SMALL, "task": "classification", "training": {"best_metric": "eval_accuracy"}}
    assert build_recipe(fields, "here").training.settings(seed=0).higher_is_better


def test_overrides_win_over_the_file(tmp_path):
    path = written(tmp_path, "model: m\ndata: d.jsonl\ntraining: {learning_rate: 1.0}\n")
    given = ["training.learning_rate=1e-4", "method.r=2", "data.packing=false", "model.offline=true"]
    recipe = read_recipe(path, [parse_override(text) for text in given])
    assert (recipe.training.learning_rate, recipe.method["r"], recipe.data.packing) == (1e-4, 2, False)
    assert (recipe.model.path, recipe.model.offline) == ("m", True)


def test_the_method_section_becomes_the_methods_own_config():
    recipe = build_recipe({**SMALL, "method": {"name": "lora", "r": 4, "lora_alpha": 16}}, "here")
    config = method_config(recipe.method, recipe.task, recipe.model.path)
    assert isinstance(config, LoraConfig)
    assert (config.r, config.lora_alpha, config.task_type, config.base_model_name_or_path) == (
        4,
        16,
        "CAUSAL_LM",
        "some/model",
    )
    untouched = LoraConfig()
    for field in dataclasses.fields(config):
        if field.name not in ("r", "lora_alpha", "task_type", "base_model_name_or_path", "target_modules"):
            assert getattr(config, field.name) == getattr(untouched, field.name), field.name


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("model: m\ndata: d\ntrainig: {}\n", ["recipe.yaml", "trainig is unknown", "'training'"]),
        ("model: m\ndata: d\ntraining: {learnin_rate: 1}\n", ["training.learnin_rate is unknown", "'learning_rate'"]),
        ("model: m\ndata: {train: [{pth: x}]}\n", ["data.train.0.pth is unknown", "'path'"]),
        ("model: m\ndata: d\nmethod: {name: lora, lora_alfa: 3}\n", ["method.lora_alfa is unknown", "'lora_alpha'"]),
        ("model: m\ndata: d\nmethod: lra\n", ["method.name", "'lra'", "'lora'"]),
        ("model: m\ndata: d\nmethod: {name: lora, r: many}\n", ["method.r='many'", "integer"]),
        ("model: m\ndata: d\nmethod: {name: lora, r: 0}\n", ["recipe.yaml", "rank must be at least 1"]),
        ("model: m\ndata: d\nquantization: {blocksize: 63}\n", ["recipe.yaml", "blocksize=63", "64"]),
        ("model: m\ndata: d\nquantization: nf5\n", ["recipe.yaml", "'nf5'", "nf4"]),
        ("model: m\ndata: d\ntraining: {batch_size: two}\n", ["training.batch_size='two'", "integer"]),
        ("model: m\ndata: d\ntraining: {patience: 2}\n", ["training", "evaluate_every"]),
        ("model: m\ndata: d\ntraining: {optimizer: adamx}\n", ["optimizer='adamx'", "adamw"]),
        ("model: m\ndata: d\ntraining: {best_metric: eval_accurcy}\n", ["accurcy", "accuracy"]),
        ("model: m\ndata: d\ntraining: {best_metric: eval_accuracy}\n", ["eval_accuracy", "eval_perplexity"]),
        ("model: m\ndata: d\ntraining: {best_metric: foo}\n", ["training.best_metric='foo'", "eval_loss"]),
        ("model: m\ndata: d\ntraining: {betas: [0.9]}\n", ["training.betas.1 is missing", "AdamW"]),
        ("model: m\ndata: d\nmethod: {target_modules: q_proj(}\n", ["method.target_modules: 'q_proj('", "expression"]),
        ("model: m\ndata: d\nmethod: {exclude_modules: '*x'}\n", ["method.exclude_modules: '*x'", "expression"]),
        ("model: m\ndata: d\nmethod: {layers_pattern: 'h['}\n", ["method.layers_pattern: 'h['", "expression"]),
        ("model: m\ndata: d\nmethod: {layers_pattern: ['h[']}\n", ["method.layers_pattern: 'h['", "expression"]),
        ("model: m\ndata: d\nmethod: {rank_pattern: {'q(': 3}}\n", ["method.rank_pattern: 'q('", "expression"]),
        ("model: m\ndata: d\nmethod: {alpha_pattern: {'q(': 3}}\n", ["method.alpha_pattern: 'q('", "expression"]),
        ("model: m\ndata: d\nmethod: {rank_pattern: 3}\n", ["method.rank_pattern=3"]),
        ("model: m\ndata: d\nquantization: {skip: ['h(']}\n", ["quantization.skip: 'h('", "expression"]),
        ("model: m\ndata: d\nlogers: [wandb]\n", ["logers", "'loggers'"]),
        (
            "model: m\ndata: {train: d, validation_fraction: 0}\ntraining: {evaluate_every: 5}\n",
            ["evaluate_every needs validation data"],
        ),
        ("model: m\n", ["data is missing"]),
        ("model: m\ndata: d\n  bad: [\n", ["recipe.yaml line 3", "YAML"]),
        ("- a\n- b\n", ["recipe.yaml", "list"]),
        ("", ["recipe.yaml holds nothing"]),
        ("model: m\ndata: d\nmethod: {name: [lora]}\n", ["method.name=['lora']", "adalora"]),
        ("model: m\ndata: d\nmethod: {name: null}\n", ["method.name=None", "adalora"]),
        ("model: m\ndata: d\nmethod: {name: 5}\n", ["method.name=5", "adalora"]),
        ("model: m\ndata: d\nseed: 99999999999999999999\n", ["seed=99999999999999999999"]),
        ("model: m\ndata: d\ntraining: {seed: 1}\n", ["training.seed is unknown. Known: max_steps"]),
        ("model: m\ndata: d\ntraining: {epochs: 1}\nseed: 1\ntraining: {}\n", ["line 5", "'training' stands twice"]),
        ("model: m\ndata: d\ntraining: {epochs: 1, epochs: 2}\n", ["line 3", "'epochs' stands twice"]),
    ],
)
def test_a_faulty_recipe_is_refused_in_one_line_that_names_the_fault(tmp_path, text, named):
    message = refusal(tmp_path, text)
    for part in named:
        assert part in message


def test_a_faulty_override_is_named(tmp_path):
    assert "section.field=value" in refusal(tmp_path, "model: m\ndata: d\n", "training")
    assert "'max_steps'" in refusal(tmp_path, "model: m\ndata: d\n", "training.maxsteps=3")


def test_a_missing_recipe_file_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"nowhere.yaml cannot be read"):
        read_recipe(tmp_path / "nowhere.yaml")


def test_local_paths_are_absolute_in_the_resolved_recipe(tmp_path, monkeypatch):
    (tmp_path / "train.jsonl").write_text("{}\n")
    monkeypatch.chdir(tmp_path)
    recipe = build_recipe(SMALL, "here").resolved()
    assert recipe.data.train[0].path == str(tmp_path / "train.jsonl")
    assert recipe.model.path == "some/model"
    assert recipe.output == str(tmp_path / "runs" / "model-lora")


def test_the_yaml_of_a_recipe_is_stable():
    recipe = build_recipe(SMALL, "here")
    assert recipe_yaml(build_recipe(yaml.safe_load(recipe_yaml(recipe)), "again")) == recipe_yaml(recipe)


def test_without_a_recipe_the_flags_that_are_missing_are_named():
    with pytest.raises(RecipeError, match=r"model is missing \(.*give --model.*data is missing \(.*give --data"):
        read_recipe(None)


def test_a_section_without_fields_has_the_defaults(tmp_path):
    text = "model: m\ndata: d\ntraining:\nevaluation:\ntokenizer:\nmethod:\n"
    assert read_recipe(written(tmp_path, text)) == read_recipe(written(tmp_path, "model: m\ndata: d\n"))
