"""The fine-tuning job, from a recipe to a finished run folder."""

from pathlib import Path

import torch

from lorasmith.attach import attach
from lorasmith.errors import RecipeError
from lorasmith.quantized import count_parameters
from lorasmith.recipes.base_model import load_base, report_lines
from lorasmith.recipes.carry_out import Echo, FinishedRun, Work, begin, carry_out, make_loggers
from lorasmith.recipes.method_section import method_config
from lorasmith.recipes.prepare import Prepared, prepare, storage_of
from lorasmith.recipes.reading import read_recipe
from lorasmith.recipes.recipe import Recipe
from lorasmith.recipes.resuming import refuse_other_recipe
from lorasmith.recipes.tokenizers import fit_embeddings_
from lorasmith.training import Logger, RunFolder


def fine_tune(recipe: Recipe, echo: Echo = print, *, resume: bool = False) -> FinishedRun:
    """Checks, loads, adapts, trains, scores and saves what recipe describes; echo gets lines for the user.

    Everything that shows without weights is checked before any is read. Raises InputError for what is wrong with the
    input, RunError for work that could not be finished.
    """
    folder = RunFolder(Path(recipe.resolved().output))
    if not resume:
        folder.refuse_used()
    prepared = prepare(recipe)
    for line in [*prepared.dataset.lines, *map(str, prepared.findings)]:
        echo(line)
    logging = make_loggers(folder, prepared.recipe)
    if resume:
        refuse_other_recipe(folder, prepared.recipe)
    begin(folder, prepared.recipe, prepared.plan, resume=resume)
    finished = carry_out(_work(prepared, folder, logging, echo), echo, resume=resume)
    echo(f"adapter: {folder.adapter}")
    echo(f"report: {folder.report}")
    return finished


def resume_run(path: Path, echo: Echo = print) -> FinishedRun:
    """Continues the run in the folder path from its last whole checkpoint, by the recipe that lies there."""
    folder = RunFolder(path.expanduser().absolute())
    if not folder.recipe.is_file():
        raise RecipeError(f"{path} holds no recipe.yaml; name the folder of a run that was begun")
    recipe = read_recipe(folder.recipe).model_copy(update={"output": str(folder.path)})
    return fine_tune(recipe, echo, resume=True)


def _work(prepared: Prepared, folder: RunFolder, logging: list[Logger], echo: Echo) -> Work:
    """The model with its weights and a fresh adapter, random parts decided by the recipe's seed alone."""
    recipe = prepared.recipe
    loaded = load_base(recipe.model, storage_of(recipe), recipe.device, seed=recipe.seed)
    for line in report_lines(loaded):
        echo(line)
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        fit_embeddings_(loaded.model, prepared.tokenizer)
        attach(loaded.model, method_config(recipe.method, recipe.task, recipe.model.path))
    echo(str(count_parameters(loaded.model)))
    return Work(recipe, loaded.model, prepared.tokenizer, prepared.dataset, folder, logging)
