"""`lorasmith convert`."""

from pathlib import Path
from typing import Annotated

import typer

from lorasmith.attach.foreign import Loralib
from lorasmith.cli.options import Task
from lorasmith.errors import InputError
from lorasmith.methods import TaskType
from lorasmith.recipes.convert import convert_adapter

app = typer.Typer(rich_markup_mode=None, add_completion=False)

_TASKS = {Task.causal: TaskType.CAUSAL_LM, Task.classification: TaskType.SEQ_CLS}


@app.command()
def convert(
    file: Annotated[str, typer.Argument(help="Safetensors file of a state dict in loralib's names.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    alpha: Annotated[float, typer.Option(help="lora_alpha of the training: the file does not hold it.")],
    model: Annotated[str | None, typer.Option(help="The base model, by hub name or folder.")] = None,
    task: Annotated[Task | None, typer.Option(help="What the adapter is for.")] = None,
    merged: Annotated[
        list[str] | None, typer.Option(help="Projections that a MergedLinear adapts: c_attn=1,0,1; repeat.")
    ] = None,
) -> None:
    """Write an adapter that loralib saved as PEFT's files.

    \b
    Example:
      lorasmith convert mnli.safetensors --alpha 16 --model roberta-base --task classification --out adapters/mnli
    """
    facts = Loralib(alpha, model, _TASKS[task] if task else None, dict(map(_flags, merged or [])))
    for line in convert_adapter(file, facts, out):
        typer.echo(line)


def _flags(text: str) -> tuple[str, tuple[bool, ...]]:
    name, _, flags = text.partition("=")
    if not name or not flags or set(flags.split(",")) - {"0", "1"}:
        raise InputError(f"--merged {text}: give a module and a 0 or 1 a projection, as in c_attn=1,0,1")
    return name, tuple(flag == "1" for flag in flags.split(","))
