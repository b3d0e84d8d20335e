"""`lorasmith train`."""

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from lorasmith.attach import PARTS
from lorasmith.cli.options import OfflineOption, RevisionOption, TrustOption
from lorasmith.errors import RecipeError
from lorasmith.methods import methods
from lorasmith.ops.cuda_allocation import grow_segments
from lorasmith.recipes.dry_run import dry_run_lines
from lorasmith.recipes.fine_tune import fine_tune, resume_run
from lorasmith.recipes.reading import parse_override, read_recipe

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def train(
    recipe: Annotated[Path | None, typer.Argument(help="A recipe file (YAML); flags win over what it says.")] = None,
    model: Annotated[str | None, typer.Option(help="Folder of the base model, or its name on the hub.")] = None,
    data: Annotated[list[str] | None, typer.Option(help="Training file or `datasets` name; may be repeated.")] = None,
    validation: Annotated[str | None, typer.Option(help="Held-out file; else a share of the training data.")] = None,
    task: Annotated[str | None, typer.Option(help="causal (default) or classification.")] = None,
    method: Annotated[str | None, typer.Option(help="The method, lora unless given.")] = None,
    rank: Annotated[int | None, typer.Option("--rank", "-r", help="Rank of the adapter.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Alpha; the adapter is scaled by alpha / rank.")] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(help="Module to adapt, or a part of the model, as attention; repeat modules; default all-linear."),
    ] = None,
    quantization: Annotated[str | None, typer.Option(help="nf4 (default), fp4, int4, int8 or none.")] = None,
    output: Annotated[str | None, typer.Option("--output", "-o", help="Run folder; default runs/MODEL-METHOD.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data, where --max-steps is not given.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples (packs, with packing) a micro-batch.")] = None,
    learning_rate: Annotated[float | None, typer.Option("--learning-rate", "--lr", help="Peak learning rate.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens an example may have.")] = None,
    device: Annotated[str | None, typer.Option(help="auto (default), cpu, cuda or mps.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the adapter's start, the order of the data and dropout.")] = None,
    revision: RevisionOption = None,
    offline: OfflineOption = False,
    trust_remote_code: TrustOption = False,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="Any other field: --set training.warmup=10; may be repeated.")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue a run folder from its last checkpoint.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved recipe, the adapted modules and the memory; stop.")
    ] = False,
) -> None:
    """Fine-tune a model with an adapter, from a recipe, from flags, or both.

    \b
    Examples:
      lorasmith train --model models/my-llama --data chats.jsonl -r 16 --max-steps 200
      lorasmith train recipe.yaml --set training.learning_rate=1e-4 --dry-run
      lorasmith train --resume runs/my-llama-lora
    """
    flags = {
        "model.path": model,
        "data.train": data or None,
        "data.validation": validation,
        "task": task,
        "method.name": method,
        "method.r": rank,
        _alpha_field(method): alpha,
        "method.target_modules": _targets(target),
        "quantization": quantization,
        "output": output,
        "training.max_steps": max_steps,
        "training.epochs": epochs,
        "training.batch_size": batch_size,
        "training.learning_rate": learning_rate,
        "data.max_length": max_length,
        "device": device,
        "seed": seed,
        "model.revision": revision,
        "model.offline": offline or None,
        "model.trust_remote_code": trust_remote_code or None,
    }
    overrides = [(key, value) for key, value in flags.items() if value is not None]
    overrides += [parse_override(text) for text in setting or []]
    grow_segments()
    if resume is not None:
        _refuse_changes(recipe, overrides, dry_run)
        resume_run(resume, typer.echo)
        return
    plan = read_recipe(recipe, overrides)
    if dry_run:
        for line in dry_run_lines(plan):
            typer.echo(line)
        return
    fine_tune(plan, typer.echo)


def _alpha_field(method: str | None) -> str:
    """What the method calls its alpha; as LoRA does, where no method is named."""
    known = {field.name for field in fields(methods[method].config_class)} if method and method in methods else set()
    return "method.alpha" if "alpha" in known else "method.lora_alpha"


def _targets(names: list[str] | None) -> Any:
    """The names, or the one word for a part of the model."""
    return names[0] if names and len(names) == 1 and names[0] in PARTS else names or None


def _refuse_changes(recipe: Path | None, overrides: list[tuple[str, Any]], dry_run: bool) -> None:
    given = [key for key, _ in overrides] + [str(recipe)] * (recipe is not None) + ["--dry-run"] * dry_run
    if given:
        raise RecipeError(f"--resume continues a run exactly as it was begun, so {', '.join(given)} cannot be given")
