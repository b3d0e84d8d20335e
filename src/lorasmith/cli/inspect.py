"""`lorasmith inspect`."""

from typing import Annotated

import typer

from lorasmith.recipes.inspection import inspection_lines

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def inspect(
    folder: Annotated[str, typer.Argument(help="Folder of an adapter, a checkpoint or a run.")],
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor with its type and shape.")] = False,
) -> None:
    """Show what an adapter or checkpoint holds: tensors, bits per weight, bytes. Reads headers only.

    \b
    Example:
      lorasmith inspect runs/my-llama-lora/adapter
    """
    for line in inspection_lines(folder, every_tensor=tensors):
        typer.echo(line)
