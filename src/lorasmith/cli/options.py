"""Options that several commands share, so that they are named and explained alike."""

from enum import StrEnum
from typing import Annotated

import typer


class Device(StrEnum):
    """Where a command computes."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class Task(StrEnum):
    """What a model is trained or scored on."""

    causal = "causal"
    classification = "classification"


DeviceOption = Annotated[Device, typer.Option(help="Where to compute; auto: CUDA, then MPS, then the CPU.")]
AdaptersOption = Annotated[
    list[str] | None, typer.Option("--adapter", help="Folder of a saved adapter; repeat it for several.")
]
QuantizationOption = Annotated[
    str | None, typer.Option(help="Load the base in nf4, fp4, int4 or int8; none: as it is stored.")
]
RevisionOption = Annotated[str | None, typer.Option(help="Branch, tag or commit of a model on the hub.")]
OfflineOption = Annotated[bool, typer.Option("--offline", help="Use the hub's cache only.")]
TrustOption = Annotated[bool, typer.Option("--trust-remote-code", help="Run Python files of the model folder.")]
