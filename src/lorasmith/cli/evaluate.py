"""`lorasmith evaluate`."""

from typing import Annotated

import typer

from lorasmith.cli.options import AdaptersOption, Device, DeviceOption, QuantizationOption, Task, TrustOption
from lorasmith.recipes.evaluate import EvaluationRequest, evaluation_lines

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Run folder, adapter folder, or base model.")],
    data: Annotated[str | None, typer.Option(help="File to score on; default: the run's validation data.")] = None,
    adapter: AdaptersOption = None,
    task: Annotated[Task | None, typer.Option(help="Default: the run's, else causal.")] = None,
    quantization: QuantizationOption = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens an example may have; longer text is cut.")] = None,
    batch_size: Annotated[int, typer.Option(help="Examples a batch.")] = 8,
    device: DeviceOption = Device.auto,
    trust_remote_code: TrustOption = False,
) -> None:
    """Score a model on held-out data, with and without its adapter.

    Causal models: loss and perplexity a token; classifiers: accuracy and F1; each with a 95 % interval.

    \b
    Examples:
      lorasmith evaluate runs/my-llama-lora
      lorasmith evaluate models/my-llama --adapter adapters/poems --data test.jsonl
    """
    request = EvaluationRequest(
        subject=model,
        adapters=tuple(adapter or ()),
        data=data,
        task=task.value if task else None,
        quantization=quantization,
        max_length=max_length,
        batch_size=batch_size,
        device=device.value,
        trust_remote_code=trust_remote_code,
    )
    for line in evaluation_lines(request):
        typer.echo(line)
