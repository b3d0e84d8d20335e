"""A start that needs data: EVA looks at the first batches that the run will train on."""

from collections.abc import Iterator
from itertools import islice

from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from lorasmith.atomic import atomic_path
from lorasmith.attach import adapters_of
from lorasmith.attach.explained_variance import InputWatch, Rows, begin_at_, token_rows
from lorasmith.data import Batch
from lorasmith.methods.lora import LoraConfig
from lorasmith.recipes.recipe import Recipe
from lorasmith.training import RunFolder, loss_for
from lorasmith.training.precision import autocast_dtype, computing

# EVA's directions stand still after a few batches; a run whose do not begins with those of the last
MOST_BATCHES = 100


def needs_data(model: PreTrainedModel, adapter: str) -> bool:
    """Whether the adapter begins at directions of its data."""
    config = adapters_of(model).configs[adapter]
    return isinstance(config, LoraConfig) and config.eva_config is not None


def begin_by_data_(
    model: PreTrainedModel, adapter: str, batches: Iterator[Batch], recipe: Recipe, folder: RunFolder, *, resume: bool
) -> str:
    """Let the adapter begin at the directions of batches, which are kept in the run folder; a line that says how.

    A resumed run begins at the directions that lie there. Raises AttachError where no batch has enough positions.
    """
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
