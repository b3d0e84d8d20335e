"""Everything that a run can know before a weight is read: recipe, headers, tokens, shapes, memory."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorasmith.attach import adapters_of, attach
from lorasmith.doctor import Finding, Job, Place, examine, job_checks, place_checks
from lorasmith.doctor.finding import note
from lorasmith.errors import PlanError
from lorasmith.models.checkpoint import Checkpoint, quantization_of
from lorasmith.models.compiled_layers import pays
from lorasmith.models.device import resolve
from lorasmith.models.fused_block import fused_blocks
from lorasmith.models.tokenizer import load_tokenizer
from lorasmith.planning import MemoryPlan, PlanSettings, plan
from lorasmith.recipes.base_model import DTYPES, Storage, open_base, skeleton
from lorasmith.recipes.dataset import Dataset, build_dataset
from lorasmith.recipes.memory import free_bytes
from lorasmith.recipes.method_section import method_config
from lorasmith.recipes.positions import context_of, room_in
from lorasmith.recipes.recipe import Recipe
from lorasmith.recipes.tokenizers import extend_tokenizer_, fit_embeddings_
from lorasmith.training.optimizers import (
    choice_of,
    factor_pairs,
    frozen_inputs,
    optimizer_memory,
    require_pairs,
    require_placement,
)
from lorasmith.training.precision import autocast_dtype
from lorasmith.training.step_in_backward import require_whole_step


@dataclass(frozen=True)
class Prepared:
    """A run that passed its checks: the resolved recipe, tokens, and the adapted model as shapes."""

    recipe: Recipe
    checkpoint: Checkpoint
    tokenizer: PreTrainedTokenizerBase
    dataset: Dataset
    model: PreTrainedModel
    plan: MemoryPlan | None
    findings: list[Finding]


def prepare(recipe: Recipe) -> Prepared:
    """Checks recipe from the cheapest to the dearest: places, headers, tokenizer, data, shapes, memory.

    No weight is read. Raises the InputError of the first check that fails.
    """
    recipe = recipe.resolved()
    device = resolve(recipe.device)
    # the device alone, before anything is read
    require_placement(recipe.training.settings(recipe.seed), {}, device)
    found = examine(place_checks, place_of(recipe, Path(recipe.output), device))
    checkpoint = open_base(recipe.model)
    recipe = with_storage(recipe, checkpoint)
    tokenizer = load_tokenizer(checkpoint.folder, trust_remote_code=recipe.model.trust_remote_code)
    extend_tokenizer_(tokenizer, recipe.tokenizer)
    recipe = with_length(recipe, room_in(checkpoint.config, recipe.method))
    dataset = build_dataset(recipe.data, recipe.task, tokenizer, recipe.seed)
    recipe = with_labels(recipe, dataset)
    model = skeleton(checkpoint, recipe.model, storage_of(recipe), device)
    grown = fit_embeddings_(model, tokenizer)
    attach(model, method_config(recipe.method, recipe.task, recipe.model.path))
    predicted, more = checked(recipe, model, tokenizer, dataset, device, grown)
    return Prepared(recipe, checkpoint, tokenizer, dataset, model, predicted, found + more)


def checked(
    recipe: Recipe,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    device: torch.device | None = None,
    new_rows: int = 0,
) -> tuple[MemoryPlan | None, list[Finding]]:
    """The predicted memory of training the adapted model, and what the doctor finds.

    device is where it will run (None: where it is), new_rows what its embedding grew by.
    Raises InputError where a check fails.
    """
    settings = recipe.training.settings(recipe.seed)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    require_pairs(settings, factor_pairs(model, trained))
    require_placement(settings, trained, device or model.device)
    if settings.step_in_backward:
        require_whole_step(autocast_dtype(model, settings.dtype), adapters_of(model).training_parts())
    if settings.max_steps is not None:
        for part in adapters_of(model).training_parts().values():
            part.check(settings.max_steps)
    with frozen_inputs(model, choice_of(settings).freezes_inputs):
        return _checked(recipe, model, tokenizer, dataset, device or model.device, new_rows)


def _checked(
    recipe: Recipe,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    device: torch.device,
    new_rows: int,
) -> tuple[MemoryPlan | None, list[Finding]]:
    predicted: MemoryPlan | None = None
    unplanned: list[Finding] = []
    try:
        predicted = predict_memory(model, recipe, dataset, device)
    except PlanError as error:
        # a run needs no prediction
        unplanned.append(note(str(error)))
    job = Job(
        task=recipe.task,
        model=model,
        tokenizer=tokenizer,
        examples=dataset.train,
        context=context_of(model),
        plan=predicted,
        available=free_bytes(device),
        new_rows=new_rows,
        held_out=len(dataset.validation),
        output=Path(recipe.output),
        kept_checkpoints=recipe.training.keep_checkpoints,
        steps=recipe.training.max_steps,
        warmup=recipe.training.warmup,
        host_available=free_bytes(torch.device("cpu")),
    )
    return predicted, unplanned + examine(job_checks, job)


def place_of(recipe: Recipe, output: Path, device: torch.device) -> Place:
    """Where the run works and writes, as the doctor looks at it."""
    return Place(output, device, DTYPES.get(recipe.training.dtype), recipe.training.offload_checkpoints)


def with_length(recipe: Recipe, context: int | None) -> Recipe:
    """The recipe with a length that fits a model of context positions, unless the recipe states one."""
    if context is None or "max_length" in recipe.data.model_fields_set:
        return recipe
    length = min(recipe.data.max_length, context)
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"max_length": length})})


def with_storage(recipe: Recipe, checkpoint: Checkpoint) -> Recipe:
    """The recipe with a base that is stored quantized left as it is, unless the recipe states a storage."""
    stored = quantization_of(checkpoint.config) is not None
    asked = "quantization" in recipe.model_fields_set
    return recipe.model_copy(update={"quantization": None}) if stored and not asked else recipe


def with_labels(recipe: Recipe, dataset: Dataset) -> Recipe:
    """The recipe with the classes that were found in the data."""
    if recipe.task != "classification":
        return recipe
    data = recipe.data.model_copy(update={"labels": list(dataset.label_names)})
    return recipe.model_copy(update={"data": data})


def storage_of(recipe: Recipe) -> Storage:
    """How the recipe holds its base model."""
    return Storage(recipe.task, recipe.quantization, tuple(recipe.data.labels or ()))


def predict_memory(model: PreTrainedModel, recipe: Recipe, dataset: Dataset, device: torch.device) -> MemoryPlan:
    """The memory of a training step from shapes. Raises PlanError where the model's forward needs more than shapes."""
    packs = recipe.data.packing and recipe.task == "causal"
    settings = PlanSettings(
        batch_size=recipe.training.batch_size,
        length=recipe.data.max_length if packs else dataset.longest,
        task=recipe.task,
        gradient_checkpointing=recipe.training.gradient_checkpointing,
        offload_checkpoints=recipe.training.offload_checkpoints,
        return_freed_memory=recipe.training.return_freed_memory,
        optimizer=optimizer_memory(recipe.training.settings(recipe.seed), device),
        autocast=autocast_dtype(model, recipe.training.dtype),
        # the process's own memory does not lie on an accelerator
        baseline=None if device.type == "cpu" else 0,
        device=device.type,
    )
    # as the run will have them
    with fused_blocks(model, device):
        compiled = pays(recipe.training.compile, device)
        return replace(plan(model, settings), device=device.type, compiled=compiled)
