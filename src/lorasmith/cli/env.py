"""`lorasmith env`."""

import typer

from lorasmith.recipes.environment import environment_lines

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def env() -> None:
    """Show versions, devices, and which kernels are active and why.

    Example: lorasmith env
    """
    for line in environment_lines():
        typer.echo(line)
