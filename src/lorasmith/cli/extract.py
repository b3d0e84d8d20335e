"""`lorasmith extract`."""

from pathlib import Path
from typing import Annotated

import typer

from lorasmith.cli.options import Device, DeviceOption, OfflineOption, Task, TrustOption
from lorasmith.recipes.extract import Extraction, extract_adapter
from lorasmith.recipes.sections import ModelSection

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def extract(
    base: Annotated[str, typer.Argument(help="Folder of the base model, or its name on the hub.")],
    tuned: Annotated[str, typer.Argument(help="Folder of the model that was tuned from it.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    rank: Annotated[int, typer.Option("--rank", "-r", help="Rank of the adapter.")] = 16,
    target: Annotated[
        list[str] | None, typer.Option(help="Module to take, or a part, as mlp; repeat modules; default all-linear.")
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option(help="Module to save whole; repeat; all: whatever else differs.")
    ] = None,
    biases: Annotated[bool, typer.Option("--biases", help="Take the changed biases of the targets too.")] = False,
    rough: Annotated[
        bool, typer.Option("--rough", help="Find the leading values alone: faster for wide matrices.")
    ] = False,
    device: DeviceOption = Device.auto,
    task: Annotated[Task, typer.Option(help="What the checkpoints are for.")] = Task.causal,
    offline: OfflineOption = False,
    trust_remote_code: TrustOption = False,
) -> None:
    """Take a LoRA out of a fully tuned checkpoint: in each matrix the nearest of the rank to what tuning changed.

    Shows how much of the change each rank leaves out, and names what else differs. Reads one matrix at a time.

    \b
    Examples:
      lorasmith extract models/my-llama models/my-llama-chat --rank 16 --out adapters/chat
      lorasmith extract models/my-llama models/my-llama-chat -r 64 --target q_proj --keep lm_head --out adapters/chat
    """
    sections = [ModelSection(path=path, offline=offline, trust_remote_code=trust_remote_code) for path in (base, tuned)]
    wanted = Extraction(
        rank, tuple(target or ("all-linear",)), tuple(keep or ()), biases, rough, task.value, device.value
    )
    for line in extract_adapter(sections[0], sections[1], wanted, out):
        typer.echo(line)
