"""The commands, each imported when it is called, so that one does not wait for what only another needs.

One of the few files that import by name at run time (tests/test_floors.py).
"""

import importlib
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

COMMANDS = {
    "train": "Fine-tune a model with an adapter, by recipe or flags.",
    "evaluate": "Score a model with and without its adapter.",
    "generate": "Answer prompts or chat, adapters side by side.",
    "merge": "Write the model with its adapter merged in, in 16 or 32 bits or quantized.",
    "combine": "Write the weighted sum of several adapters as one.",
    "extract": "Take a LoRA out of a fully tuned checkpoint.",
    "convert": "Write an adapter that loralib saved as PEFT's files.",
    "quantize": "Write a checkpoint with its linear layers quantized.",
    "inspect": "Show what an adapter or checkpoint holds, and its bytes.",
    "env": "Show versions, devices, and which kernels are active and why.",
}


class LazyCommand(TyperCommand):
    """A command known by its line of help; its file is imported when it is called."""

    def __init__(self, name: str, line: str) -> None:
        super().__init__(name=name, help=line)

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """The context of the real command, so that parsing and running are its own."""
        app = importlib.import_module(f"lorasmith.cli.{self.name}").app
        command = typer.main.get_command(app)
        command.name = self.name
        return command.make_context(info_name, args, parent, **extra)


def command_group() -> TyperGroup:
    """The `lorasmith` command with every command of the table."""
    return TyperGroup(
        name="lorasmith",
        help="Fine-tune language models with adapters on quantized weights.\n\nBegin with: lorasmith train --help",
        commands={name: LazyCommand(name, line) for name, line in COMMANDS.items()},
        rich_markup_mode=None,
    )
