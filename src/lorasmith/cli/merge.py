"""`lorasmith merge`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lorasmith.cli.options import Device, DeviceOption, TrustOption
from lorasmith.errors import MergeError, nearest
from lorasmith.formats import formats
from lorasmith.recipes.merge import merge_adapter
from lorasmith.recipes.merge_quantized import LEAST_KEPT, MergeRequest, merge_quantized

app = typer.Typer(rich_markup_mode=None, add_completion=False)

# what --into takes, by the name of the dense type that the recipe knows
_DENSE = {"bf16": "bf16", "f32": "fp32", "fp32": "fp32", "f16": "fp16", "fp16": "fp16"}


class Method(StrEnum):
    """How the sum is put into a number format."""

    auto = "auto"
    exact = "exact"
    requantize = "requantize"
    round = "round"
    compensate = "compensate"


@app.command()
def merge(
    adapter: Annotated[str, typer.Argument(help="Run folder or adapter folder.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    model: Annotated[str | None, typer.Option(help="The base model, where the adapter does not name it.")] = None,
    into: Annotated[
        str | None, typer.Option(help="What the merged weights become: bf16, f32, f16, nf4, fp4, int4 or int8 [bf16].")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Older name of --into.", hidden=True)] = None,
    method: Annotated[
        Method,
        typer.Option(help="How the sum is quantized; auto: every way that the base allows, and the one nearest to it."),
    ] = Method.auto,
    calibration: Annotated[
        str | None,
        typer.Option(help="Data file to calibrate and measure on, else the run's own data or a default text."),
    ] = None,
    base_16bit: Annotated[
        str | None, typer.Option("--base-16bit", help="The 16-bit model that a quantized base was made from.")
    ] = None,
    least_kept: Annotated[
        float | None,
        typer.Option(help="Refuse a quantized merge that keeps less of the adapter's effect; default 0.8."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write it all the same.")] = False,
    device: DeviceOption = Device.auto,
    trust_remote_code: TrustOption = False,
) -> None:
    """Write the model with its adapter merged in, in 16 or 32 bits or quantized.

    In 16 or 32 bits the adapter goes onto the weights that the base is stored with. Quantized, what the merged model
    keeps of the adapter is measured, shown, written to merge.json, and the merge refused where it is too little.

    \b
    Examples:
      lorasmith merge runs/my-llama-lora --out models/my-llama-tuned --into bf16
      lorasmith merge runs/my-llama-lora --out models/my-llama-nf4 --into nf4 --calibration data/train.jsonl
    """
    target = _target(into, dtype)
    if target in _DENSE:
        _refuse_for_dense(
            target,
            {
                f"--method {method}": method is not Method.auto,
                f"--calibration {calibration}": calibration is not None,
                f"--base-16bit {base_16bit}": base_16bit is not None,
                f"--least-kept {least_kept}": least_kept is not None,
                "--force": force,
            },
        )
        lines = merge_adapter(
            adapter,
            out,
            base=model,
            dtype=_DENSE[target],
            device=device.value,
            trust_remote_code=trust_remote_code,
        )
    else:
        lines = merge_quantized(
            MergeRequest(
                adapter,
                out,
                target,
                method.value,
                base=model,
                base_16bit=base_16bit,
                calibration=calibration,
                least_kept=LEAST_KEPT if least_kept is None else least_kept,
                force=force,
                device=device.value,
                trust_remote_code=trust_remote_code,
            )
        )
    for line in lines:
        typer.echo(line)


def _refuse_for_dense(target: str, given: dict[str, bool]) -> None:
    """Raise MergeError for options that a merge into 16 or 32 bits does not read."""
    unread = [option for option, is_given in given.items() if is_given]
    if unread:
        known = ", ".join(formats.names())
        raise MergeError(f"--into {target} does not read {', '.join(unread)}; leave that out, or merge into {known}")


def _target(into: str | None, dtype: str | None) -> str:
    if into is not None and dtype is not None:
        raise MergeError(f"--into {into} and --dtype {dtype} say the same thing; leave --dtype out")
    target = into or dtype or "bf16"
    if target not in _DENSE and target not in formats:
        known = ", ".join(["bf16", "f32", "f16", *formats.names()])
        raise MergeError(f"--into {target!r} is not one of {known}.{nearest(target, [*_DENSE, *formats.names()])}")
    return target
