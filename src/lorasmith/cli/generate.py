"""`lorasmith generate`."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from lorasmith.cli.options import AdaptersOption, Device, DeviceOption, QuantizationOption, TrustOption
from lorasmith.decoding import decoding_graphs, require_cuda
from lorasmith.errors import InputError
from lorasmith.models.device import resolve
from lorasmith.recipes.generate import Speaker, load_speaker, read_prompts
from lorasmith.recipes.generation import GenerationSettings

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def generate(
    model: Annotated[str, typer.Argument(help="Run folder, adapter folder, or base model.")],
    prompt: Annotated[str | None, typer.Argument(help="The prompt; without it and --file, a chat begins.")] = None,
    file: Annotated[Path | None, typer.Option(help="File with a prompt a line (or JSONL with `prompt`).")] = None,
    adapter: AdaptersOption = None,
    base_too: Annotated[bool, typer.Option("--base", help="Answer without any adapter too.")] = False,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 256,
    temperature: Annotated[float, typer.Option(help="0: the likeliest token always.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Sample from the likeliest tokens with this total probability.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it is, without the chat template.")] = False,
    quantization: QuantizationOption = None,
    device: DeviceOption = Device.auto,
    cuda_graphs: Annotated[
        bool, typer.Option("--cuda-graphs", help="Replay each token's step as one CUDA graph; not measured yet.")
    ] = False,
    trust_remote_code: TrustOption = False,
) -> None:
    """Answer a prompt, a file of prompts, or chat; several adapters side by side.

    \b
    Examples:
      lorasmith generate runs/my-llama-lora "Once upon a time"
      lorasmith generate models/my-llama --adapter runs/a/adapter --adapter runs/b/adapter --file prompts.txt
      lorasmith generate runs/my-llama-lora
    """
    settings = GenerationSettings(max_new_tokens, temperature, top_p, seed, raw)
    if prompt is not None and file is not None:
        raise InputError("a prompt and --file were given; leave one of them out")
    if cuda_graphs:
        require_cuda(resolve(device.value))
    prompts = [prompt] if prompt is not None else read_prompts(file) if file else None
    speaker = load_speaker(
        model, tuple(adapter or ()), quantization=quantization, device=device.value, trust_remote_code=trust_remote_code
    )
    voices = speaker.voices(base_too)
    with decoding_graphs(speaker.model) if cuda_graphs else nullcontext():
        if prompts is None:
            _chat(speaker, voices, settings)
        for text in prompts or []:
            if len(prompts or []) > 1:
                typer.echo(f"> {text}")
            _answer(speaker, voices, [{"role": "user", "content": text}], settings)


def _answer(
    speaker: Speaker, voices: list[str | None], turns: list[dict[str, str]], settings: GenerationSettings
) -> str:
    """Streams every voice's answer, headed by its name where there are several; returns the last voice's."""
    answer = ""
    for voice in voices:
        if len(voices) > 1:
            typer.echo(f"[{voice or 'base'}]")
        answer = speaker.answer(turns, voice, settings, lambda piece: typer.echo(piece, nl=False))
        typer.echo()
    return answer


def _chat(speaker: Speaker, voices: list[str | None], settings: GenerationSettings) -> None:
    """Asks for lines until an empty one or the end of the input; the last voice's answers are remembered."""
    turns: list[dict[str, str]] = []
    typer.echo("An empty line ends the chat.", err=True)
    while True:
        try:
            line = input("> ")
        except EOFError:
            return
        if not line.strip():
            return
        turns.append({"role": "user", "content": line})
        turns.append({"role": "assistant", "content": _answer(speaker, voices, turns, settings)})
