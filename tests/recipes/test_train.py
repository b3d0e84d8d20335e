import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from lorasmith.attach import adapters_of, attach, read_class_names
from lorasmith.errors import InputError, ModelError, RecipeError
from lorasmith.methods.lora import LoraConfig
from lorasmith.models.load import load
from lorasmith.models.packed_attention import PACKED
from lorasmith.quantized import Scheme
from lorasmith.recipes.reading import read_recipe
from lorasmith.recipes.subject import find_subject, load_subject
from lorasmith.recipes.train import train

SMALL = {"max_steps": 2, "batch_size": 2, "max_length": 32, "samples": 0, "learning_rate": 1e-2}


def quiet(line):
    """Drops what a job tells its user."""


def test_a_bare_model_gets_lora_on_all_linear_layers(llama, stories, tmp_path):
    loaded = load(llama, scheme=Scheme())
    finished = train(loaded.model, loaded.tokenizer, stories, output=tmp_path / "run", echo=quiet, **SMALL)
    assert len(adapters_of(loaded.model).sites("default")) == 14
    assert finished.training.steps == 2
    assert (tmp_path / "run" / "report.html").is_file()
    assert read_recipe(tmp_path / "run" / "recipe.yaml").quantization.format == "nf4"


def test_an_adapted_model_keeps_its_adapter(llama, stories, tmp_path):
    loaded = load(llama)
    book = attach(loaded.model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"), "mine")
    finished = train(loaded.model, loaded.tokenizer, stories, output=tmp_path / "run", echo=quiet, **SMALL)
    assert list(book.configs) == ["mine"]
    saved = load_file(finished.adapter / "adapter_model.safetensors")
    assert len(saved) == 4
    stated = read_recipe(tmp_path / "run" / "recipe.yaml")
    assert (stated.method["r"], stated.method["target_modules"], stated.quantization) == (2, ["q_proj"], None)


def test_records_in_memory_train_like_the_file_that_holds_them(llama, stories, tmp_path):
    records = [json.loads(line) for line in stories.read_text().splitlines()]
    results = []
    for number, data in enumerate((stories, records)):
        loaded = load(llama)
        results.append(train(loaded.model, loaded.tokenizer, data, output=tmp_path / str(number), echo=quiet, **SMALL))
    assert results[0].training.loss == results[1].training.loss


def test_a_trained_model_has_its_own_attention_again(llama, stories, tmp_path):
    loaded = load(llama)
    before = loaded.model.config._attn_implementation
    train(loaded.model, loaded.tokenizer, stories, output=tmp_path / "run", echo=quiet, **SMALL)
    assert loaded.model.config._attn_implementation == before != PACKED
    tokens = loaded.tokenizer("the cat", return_tensors="pt")
    text = loaded.model.generate(**tokens, max_new_tokens=4, do_sample=False)
    # the same weights in a fresh model say the same
    again = load_subject(find_subject(str(tmp_path / "run")), "cpu").model
    assert torch.equal(again.generate(**tokens, max_new_tokens=4, do_sample=False), text)


def test_a_run_is_resumed_with_the_same_arguments_only(llama, stories, tmp_path):
    same = {"output": tmp_path / "run", "echo": quiet, "method": {"name": "lora", "r": 2}} | SMALL
    loaded = load(llama)
    train(loaded.model, loaded.tokenizer, stories, **same)
    stated = (tmp_path / "run" / "recipe.yaml").read_bytes()
    for changes, named in [
        ({"learning_rate": 0.5}, r"training.learning_rate=0.01 \(now 0.5\)"),
        ({"max_length": 16}, r"data.max_length=32 \(now 16\)"),
        ({"method": {"name": "lora", "r": 3}}, r"method.r=2 \(now 3\)"),
        ({"seed": 1}, "seed=0"),
    ]:
        loaded = load(llama)
        with pytest.raises(RecipeError, match=named):
            train(loaded.model, loaded.tokenizer, stories, resume=True, **(same | changes))
        assert not adapters_of(loaded.model).configs
        assert (tmp_path / "run" / "recipe.yaml").read_bytes() == stated
    assert train(loaded.model, loaded.tokenizer, stories, resume=True, **same).training.steps == 2
    # the model has its adapter now, with the targets spelled out
    train(loaded.model, loaded.tokenizer, stories, resume=True, **(same | {"method": None}))
    assert (tmp_path / "run" / "recipe.yaml").read_bytes() == stated


def test_a_classifiers_adapter_knows_the_names_in_the_data(bert, reviews, tmp_path):
    loaded = load(bert, task="classification", num_labels=2)
    same = {"task": "classification", "echo": quiet} | SMALL
    named = train(loaded.model, loaded.tokenizer, reviews, output=tmp_path / "named", **same)
    assert read_class_names(named.adapter) == ("no", "yes")
    records = [json.loads(line) for line in reviews.read_text().splitlines()]
    numbered = [record | {"label": int(record["label"] == "yes")} for record in records]
    again = train(loaded.model, loaded.tokenizer, numbered, output=tmp_path / "numbered", **same)
    # numbers name nothing
    assert read_class_names(again.adapter) == ("no", "yes")


def test_an_unknown_argument_names_the_nearest(llama, stories, tmp_path):
    loaded = load(llama)
    with pytest.raises(RecipeError, match=r"'learnin_rate'.*'learning_rate'"):
        train(loaded.model, loaded.tokenizer, stories, output=tmp_path / "run", echo=quiet, learnin_rate=1.0)


def test_a_model_that_is_not_transformers_is_refused(llama, stories, tmp_path):
    with pytest.raises(ModelError, match="Sequential is no transformers model"):
        train(torch.nn.Sequential(), AutoTokenizer.from_pretrained(llama), stories, output=tmp_path / "run")


def test_a_method_for_an_adapted_model_is_refused(llama, stories, tmp_path):
    loaded = load(llama)
    attach(loaded.model, LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(RecipeError, match="leave method out"):
        train(loaded.model, loaded.tokenizer, stories, output=tmp_path / "run", method="lora", **SMALL)


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (None, "train is a NoneType: give a file"),
        ({"text": ["a"]}, "train is a dict"),
        (["a b", "c d"], "holds a str, not named"),
    ],
)
def test_data_that_are_no_records_are_refused(llama, data, named, tmp_path):
    loaded = load(llama, scheme="nf4")
    with pytest.raises(InputError, match=named):
        train(loaded.model, loaded.tokenizer, data, output=tmp_path / "run", max_steps=1)
    with pytest.raises(InputError, match="tokenizer=None"):
        train(loaded.model, None, data, output=tmp_path / "run", max_steps=1)
