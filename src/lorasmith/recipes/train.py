"""`lorasmith.train`: the fine-tuning job on a model that is loaded already."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorasmith.attach import Adapters, adapters_of, attach
from lorasmith.doctor import examine, place_checks
from lorasmith.errors import ModelError, RecipeError, nearest
from lorasmith.methods import AdapterConfig
from lorasmith.quantized import QuantizedWeight
from lorasmith.recipes.carry_out import Echo, FinishedRun, Work, begin, carry_out, make_loggers
from lorasmith.recipes.dataset import Records, build_dataset
from lorasmith.recipes.method_section import method_config, section_of
from lorasmith.recipes.positions import context_of
from lorasmith.recipes.prepare import checked, place_of, with_labels, with_length
from lorasmith.recipes.reading import build_recipe
from lorasmith.recipes.recipe import Recipe
from lorasmith.recipes.resuming import refuse_other_recipe
from lorasmith.recipes.sections import DataSection, EvaluationSection, Section, TrainingSection
from lorasmith.training import RunFolder
from lorasmith.training.loss import base_model

Data = str | Path | Records

_SECTIONS: dict[str, type[Section]] = {
    "training": TrainingSection,
    "data": DataSection,
    "evaluation": EvaluationSection,
}
_TOP = ("loggers", "seed")


def train(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    data: Data,
    *,
    output: str | Path,
    task: str = "causal",
    method: AdapterConfig | Mapping[str, Any] | str | None = None,
    validation: Data | None = None,
    resume: bool = False,
    echo: Echo = print,
    **fields: Any,
) -> FinishedRun:
    """Fine-tune model in place and fill the run folder output; model keeps its best weights.

    model is a transformers model, or a PeftModel around one. One that has adapters trains the active one; a bare one
    gets method (a config object, a recipe's method section or a name; default LoRA on all linear layers). data and
    validation are files, names of `datasets`, or lists of records. fields are those of a recipe's training, data and
    evaluation sections, such as max_steps=200, learning_rate=1e-4, max_length=512, samples=0; also seed and loggers.
    With resume the run in output continues from its last checkpoint; give the same arguments.

    Raises InputError (of which RecipeError, DataError and others are kinds) before training, RunError during it.
    """
    base = transformers_model(model)
    if tokenizer is None:
        raise ModelError("tokenizer=None: give the tokenizer of the model; its folder holds none")
    asked = Asked(data, output, task, method, validation, fields)
    return carry_out(prepared(base, tokenizer, asked, echo, resume=resume), echo, resume=resume)


@dataclass(frozen=True)
class Asked:
    """The arguments of train for one adapter; adapter is its name, None the active one's, or "default"."""

    data: Data
    output: str | Path
    task: str
    method: AdapterConfig | Mapping[str, Any] | str | None
    validation: Data | None
    fields: Mapping[str, Any]
    adapter: str | None = None


def prepared(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: Asked, echo: Echo, *, resume: bool
) -> Work:
    """What is asked, checked and written down, with its adapter on base and active."""
    held: dict[str, Records] = {}
    sources = {"train": _source(asked.data, "train", held)}
    if asked.validation is not None:
        sources["validation"] = _source(asked.validation, "validation", held)
    start = {"task": asked.task, "output": str(asked.output), "data": sources}
    recipe = _recipe(base, start, asked)
    folder = RunFolder(Path(recipe.output))
    if not resume:
        folder.refuse_used()
    findings = examine(place_checks, place_of(recipe, folder.path, base.device))
    recipe = with_length(recipe, context_of(base))
    dataset = build_dataset(recipe.data, recipe.task, tokenizer, recipe.seed, held)
    recipe = with_labels(recipe, dataset)
    if resume:
        refuse_other_recipe(folder, recipe)
    new = _is_new(adapters_of(base), asked.adapter)
    adapter = _ensure_adapter(base, recipe, asked.adapter)
    plan, more = checked(recipe, base, tokenizer, dataset)
    for line in [*dataset.lines, *map(str, findings + more)]:
        echo(line)
    logging = make_loggers(folder, recipe)
    begin(folder, recipe, plan, resume=resume)
    return Work(recipe, base, tokenizer, dataset, folder, logging, adapter, new)


def transformers_model(model: nn.Module) -> PreTrainedModel:
    """The model inside; ModelError where it is none of transformers'."""
    inside = base_model(model)
    if not isinstance(inside, PreTrainedModel):
        raise ModelError(
            f"{type(model).__name__} is no transformers model, which lorasmith.train needs; write a loop of your own "
            "around lorasmith.attach, or use lorasmith.training.run"
        )
    return inside


def _source(data: Data, name: str, held: dict[str, Records]) -> str:
    """The path of data; records in memory are put into held under the name that stands for them."""
    if isinstance(data, str | Path):
        return str(data)
    if isinstance(data, Mapping) or not isinstance(data, Iterable):
        raise RecipeError(f"{name} is a {type(data).__name__}: give a file, a name of `datasets`, or a list of records")
    place = f"{name} records in memory"
    held[place] = list(data)
    return place


def _recipe(model: PreTrainedModel, start: dict[str, Any], asked: Asked) -> Recipe:
    """The recipe that describes this call, so that its run folder reads like any other."""
    fields: dict[str, Any] = {
        "model": model.name_or_path or type(model).__name__,
        "method": _method_section(model, asked),
        "quantization": _storage_section(model),
        "device": model.device.type,
        **start,
    }
    for name, value in asked.fields.items():
        section = next((title for title, kind in _SECTIONS.items() if name in kind.model_fields), None)
        if section is None and name not in _TOP:
            known = [field for kind in _SECTIONS.values() for field in kind.model_fields] + list(_TOP)
            raise RecipeError(f"train() has no argument {name!r}.{nearest(name, known)}")
        (fields.setdefault(section, {}) if section else fields)[name] = value
    return build_recipe(fields, "lorasmith.train").resolved()


def _method_section(model: PreTrainedModel, asked: Asked) -> Any:
    book, method, named = adapters_of(model), asked.method, asked.adapter
    there = bool(book.configs) if named is None else named in book.configs
    if there and method is not None:
        raise RecipeError(f"the model has the adapters {', '.join(book.configs)} already; leave method out")
    if there and named is None and len(book.active) != 1:
        raise RecipeError(f"{len(book.active)} adapters are active; activate the one to train with set_adapter")
    config = book.configs[named or book.active[0]] if there else method
    if config is None:
        return {"name": "lora"}
    return section_of(config) if isinstance(config, AdapterConfig) else config


def _storage_section(model: PreTrainedModel) -> dict[str, Any] | str:
    layer = next((module for module in model.modules() if isinstance(module, QuantizedWeight)), None)
    if layer is None:
        return "none"
    scheme = layer.scheme
    return asdict(scheme)


def _is_new(book: Adapters, named: str | None) -> bool:
    return not book.configs if named is None else named not in book.configs


def _ensure_adapter(model: PreTrainedModel, recipe: Recipe, named: str | None) -> str:
    """The name of the adapter to train, which is active; a new one where there is none of the name, or none at all."""
    book = adapters_of(model)
    if named is None and book.configs:
        return book.active[0]
    name = named or "default"
    if name in book.configs:
        book.activate(name, trainable=True)
        return name
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        attach(model, method_config(recipe.method, recipe.task, recipe.model.path), name)
    return name
