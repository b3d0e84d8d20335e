"""`lorasmith merge`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lorasmith.cli.options import Device, DeviceOption, TrustOption
from lorasmith.recipes.merge import merge_adapter

app = typer.Typer(rich_markup_mode=None, add_completion=False)


class MergedType(StrEnum):
    """Type of the merged weights."""

    bf16 = "bf16"
    fp32 = "fp32"
    fp16 = "fp16"


@app.command()
def merge(
    adapter: Annotated[str, typer.Argument(help="Run folder or adapter folder.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    model: Annotated[str | None, typer.Option(help="The base model, where the adapter does not name it.")] = None,
    dtype: Annotated[MergedType, typer.Option(help="Type of the merged weights.")] = MergedType.bf16,
    device: DeviceOption = Device.auto,
    trust_remote_code: TrustOption = False,
) -> None:
    """Write the model with its adapter merged in, in 16 or 32 bits.

    The adapter goes onto the weights that the base is stored with, not onto their quantized form.

    \b
    Example:
      lorasmith merge runs/my-llama-lora --out models/my-llama-tuned --dtype bf16
    """
    lines = merge_adapter(
        adapter, out, base=model, dtype=dtype.value, device=device.value, trust_remote_code=trust_remote_code
    )
    for line in lines:
        typer.echo(line)
