"""The `lorasmith` command: runs a command and turns what goes wrong into one line and an exit code.

0 is success, 2 bad input (nothing was begun), 1 a run that could not be finished.
"""

import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, cast

import typer

from lorasmith.cli.table import command_group
from lorasmith.errors import LorasmithError

INTERRUPTED = 130

# typer carries its own copy of click from 0.27 on; the base of its usage errors is reached through a public name
UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `lorasmith ARGUMENTS` (default: the process's own) and returns its exit code."""
    _show_warnings()
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = command_group().main(args=given or ["--help"], prog_name="lorasmith", standalone_mode=False)
    except UsageError as error:
        return _fail(2, f"error: {cast(Any, error).format_message()} (see {_help_for(error)})", error)
    except LorasmithError as error:
        return _fail(error.exit_code, f"error: {error}", error)
    except typer.Abort as error:
        return _fail(1, "error: interrupted", error)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(1, f"error: {where}{error.strerror or error}", error)
    except Exception as error:
        name = type(error).__name__
        return _fail(1, f"internal error: {name}: {error} (set LORASMITH_DEBUG=1 for the traceback)", error)
    if code == INTERRUPTED:
        print("error: interrupted", file=sys.stderr)
        return 1
    return code if isinstance(code, int) else 0


class _ToStandardError(logging.Handler):
    """Writes to whatever standard error is at that moment: a process may put another in its place and close the old."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


def _show_warnings() -> None:
    """Warnings of this package go to standard error, each as one line; twice called is once done."""
    log = logging.getLogger("lorasmith")
    if not log.handlers:
        handler = _ToStandardError()
        handler.setFormatter(logging.Formatter("warning: %(message)s"))
        handler.setLevel(logging.WARNING)
        log.addHandler(handler)


def _fail(code: int, message: str, error: BaseException) -> int:
    if os.environ.get("LORASMITH_DEBUG"):
        traceback.print_exception(error)
    print(" ".join(message.split()), file=sys.stderr)
    return code


def _help_for(error: BaseException) -> str:
    context = getattr(error, "ctx", None)
    return f"{context.command_path if context else 'lorasmith'} --help"


if __name__ == "__main__":
    sys.exit(main())
