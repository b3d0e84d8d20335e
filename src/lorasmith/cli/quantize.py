"""`lorasmith quantize`."""

from pathlib import Path
from typing import Annotated

import typer

from lorasmith.cli.options import Device, DeviceOption, OfflineOption, RevisionOption, Task, TrustOption
from lorasmith.recipes.quantize import quantize_checkpoint
from lorasmith.recipes.sections import ModelSection, QuantizationSection

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def quantize(
    model: Annotated[str, typer.Argument(help="Folder of a checkpoint, or its name on the hub.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    number_format: Annotated[str, typer.Option("--format", help="nf4, fp4, int4 or int8.")] = "nf4",
    blocksize: Annotated[int, typer.Option(help="Weights that share a scale: 32 to 4096; int8 has none.")] = 64,
    double_quant: Annotated[bool, typer.Option(help="Store the scales in 8 bits too.")] = True,
    zero_points: Annotated[bool, typer.Option("--zero-points", help="Give every block an offset in 32 bits.")] = False,
    skip: Annotated[list[str] | None, typer.Option(help="Module to leave as it is; may be repeated.")] = None,
    task: Annotated[Task, typer.Option(help="What the checkpoint is for.")] = Task.causal,
    device: DeviceOption = Device.auto,
    revision: RevisionOption = None,
    offline: OfflineOption = False,
    trust_remote_code: TrustOption = False,
) -> None:
    """Write a checkpoint with its linear layers quantized.

    nf4, fp4 and int8 are written as bitsandbytes writes them, so that other programs load them too.

    \b
    Example:
      lorasmith quantize models/my-llama --out models/my-llama-nf4
    """
    storage = QuantizationSection(
        format=number_format, blocksize=blocksize, double_quant=double_quant, zero_points=zero_points, skip=skip
    )
    base = ModelSection(path=model, revision=revision, offline=offline, trust_remote_code=trust_remote_code)
    for line in quantize_checkpoint(base, storage, out, task=task.value, device=device.value):
        typer.echo(line)
