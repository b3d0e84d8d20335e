"""A start that needs data looks at the first batches that the run will train on.

EVA looks at what layers read; a method whose sites wait for data (SHiRA by gradients), at their weights' gradients.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from itertools import islice

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from lorasmith.atomic import atomic_path
from lorasmith.attach import Adapters, adapters_of
from lorasmith.attach.explained_variance import InputWatch, Rows, begin_at_, token_rows
from lorasmith.attach.weight_gradients import begin_at_gradients_
from lorasmith.data import Batch
from lorasmith.methods.lora import LoraConfig
from lorasmith.models.activation_checkpointing import recomputed
from lorasmith.recipes.recipe import Recipe
from lorasmith.training import RunFolder, loss_for
from lorasmith.training.precision import autocast_dtype, computing

# EVA's directions stand still after a few batches; a run whose do not begins with those of the last
MOST_BATCHES = 100
# gradients are summed over as many micro-batches
GRADIENT_BATCHES = 32


def needs_data(model: PreTrainedModel, adapter: str, *, new: bool) -> bool:
    """Whether the adapter begins by its data; new is whether the job made it."""
    book = adapters_of(model)
    return (new and _is_eva(book, adapter)) or _waits(book, adapter)


def begin_by_data_(
    model: PreTrainedModel, adapter: str, batches: Iterator[Batch], recipe: Recipe, folder: RunFolder, *, resume: bool
) -> str:
    """Let the adapter begin by what batches show, which is kept in the run folder; a line that says how.

    A resumed run begins at what lies there. Raises AttachError where the batches show too little.
    """
    begin_ = _begin_at_gradients_ if _waits(adapters_of(model), adapter) else _begin_at_directions_
    return begin_(model, adapter, batches, recipe, folder, resume)


def _is_eva(book: Adapters, adapter: str) -> bool:
    config = book.configs[adapter]
    return isinstance(config, LoraConfig) and config.eva_config is not None


def _waits(book: Adapters, adapter: str) -> bool:
    return any(site.needs_data for _, site in book.sites(adapter))


def _begin_at_directions_(
    model: PreTrainedModel, adapter: str, batches: Iterator[Batch], recipe: Recipe, folder: RunFolder, resume: bool
) -> str:
    book = adapters_of(model)
    if resume and folder.directions.is_file():
        begin_at_(book, adapter, load_file(folder.directions))
        return f"EVA: directions of {folder.directions}"
    watch = InputWatch(book, adapter)
    loss = loss_for(model, recipe.task)

    def rows(batch: Batch) -> Rows:
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "labels": batch.labels}
        return token_rows(inputs, watch.settings)

    moved = (batch.to(model.device) for batch in islice(batches, MOST_BATCHES))
    with computing(next(model.parameters()), autocast_dtype(model, recipe.training.dtype)):
        stood_still = watch.run(moved, loss, rows)
    directions = watch.directions()
    with atomic_path(folder.directions) as path:
        save_file({name: a_RI.cpu().contiguous() for name, a_RI in directions.items()}, path)
    begin_at_(book, adapter, directions)
    ranks = [len(a_RI) for a_RI in directions.values()]
    ending = "" if stood_still else ", directions still turning"
    return f"EVA: ranks {min(ranks)} to {max(ranks)} from {watch.batches} batches{ending}"


def _begin_at_gradients_(
    model: PreTrainedModel, adapter: str, batches: Iterator[Batch], recipe: Recipe, folder: RunFolder, resume: bool
) -> str:
    book = adapters_of(model)
    method = book.configs[adapter].METHOD
    if resume and folder.places.is_file():
        _take_places_(book, adapter, load_file(folder.places))
        return f"{method}: places of {folder.places}"
    loss, dtype = loss_for(model, recipe.task), autocast_dtype(model, recipe.training.dtype)

    def computed(batch: Batch) -> Tensor:
        with computing(next(model.parameters()), dtype):
            return loss(batch.to(model.device))

    chosen = list(islice(batches, GRADIENT_BATCHES))
    recompute = recipe.training.gradient_checkpointing
    with torch.random.fork_rng(), recomputed(model) if recompute else nullcontext():
        # a layer that is recomputed may drop out in its own forward
        torch.manual_seed(recipe.seed)
        begin_at_gradients_(book, adapter, chosen, computed, recompute=recompute)
    with atomic_path(folder.places) as path:
        save_file({name: value.cpu().contiguous() for name, value in _places(book, adapter).items()}, path)
    return f"{method}: places in {len(book.sites(adapter))} layers by the gradients of {len(chosen)} batches"


def _places(book: Adapters, adapter: str) -> dict[str, Tensor]:
    """What the adapter's sites hold and never train, by module."""
    return {f"{path}.{name}": value for path, site in book.sites(adapter) for name, value in site.named_buffers()}


def _take_places_(book: Adapters, adapter: str, found: dict[str, Tensor]) -> None:
    for path, site in book.sites(adapter):
        keys = site.file_keys()
        for name, value in site.named_buffers():
            value.copy_(site.restored(keys[name], found[f"{path}.{name}"]))
        site.loaded()
