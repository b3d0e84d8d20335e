"""`lorasmith.train_together`: fine-tuning jobs that run at once, an adapter each, on one model in memory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from lorasmith.attach import adapters_of
from lorasmith.errors import RecipeError
from lorasmith.models.fused_block import fused_blocks
from lorasmith.recipes.carry_out import Echo, FinishedRun, OpenRun, close_run, open_run
from lorasmith.recipes.streams import own_attention
from lorasmith.recipes.train import Asked, prepared, transformers_model
from lorasmith.training import Job
from lorasmith.training import train_together as run_together


def train_together(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    jobs: Mapping[str, Mapping[str, Any]],
    *,
    output: str | Path,
    task: str = "causal",
    resume: bool = False,
    echo: Echo = print,
) -> dict[str, FinishedRun]:
    """Fine-tune an adapter for each of jobs at once, in place, and fill a run folder output/NAME for each.

    jobs maps the name of an adapter to its arguments of `lorasmith.train`: data, and what it wants of method,
    validation, learning_rate, max_steps and the others. An adapter that the model has already is trained on; another
    is made. Every step is one batch of all adapters' rows; each comes out as from a run of its own, and ends by its own
    settings. plan.json is the memory of a run alone. Afterwards all of them are active.
    Raises what lorasmith.train raises, and RecipeError for jobs that do not fit into one batch.
    """
    base = transformers_model(model)
    if not jobs:
        raise RecipeError("jobs is empty; give the arguments of train for at least one adapter, by its name")
    book = adapters_of(base)
    works = [
        prepared(base, tokenizer, _asked(name, job, output, task), echo, resume=resume) for name, job in jobs.items()
    ]
    opened: list[OpenRun] = []
    with own_attention(base), fused_blocks(base):
        for work in works:
            book.activate(work.adapter)
            opened.append(open_run(work, echo, resume=resume))
        together = [
            Job(run.work.adapter, run.loader, run.settings, run.work.folder, run.evaluate, run.work.loggers)
            for run in opened
        ]
        results = run_together(base, together, task=opened[0].work.recipe.task, resume=resume)
        finished = {}
        for run in opened:
            book.activate(run.work.adapter)
            finished[run.work.adapter] = close_run(run, results[run.work.adapter], echo)
    book.activate(list(jobs))
    return finished


def _asked(name: str, job: Mapping[str, Any], output: str | Path, task: str) -> Asked:
    fields = dict(job)
    if "data" not in fields:
        raise RecipeError(f"the job {name!r} has no data; give it the file or records to train on")
    data, method, validation = fields.pop("data"), fields.pop("method", None), fields.pop("validation", None)
    return Asked(data, Path(output) / name, task, method, validation, fields, name)
