"""What can go wrong for a user, with the exit code that the command line gives for it."""

from collections.abc import Iterable
from difflib import get_close_matches


class LorasmithError(Exception):
    """Base of every error that is meant for a user: one line that names the thing, the rule and the fix."""

    exit_code = 2


class InputError(LorasmithError, ValueError):
    """Bad input, found before any expensive work."""


class RecipeError(InputError):
    """A recipe that cannot be run as written."""


class DataError(InputError):
    """A data file, record or tokenizer output that cannot be trained or scored on."""


class FormatError(InputError):
    """A number format, block size or stored tensor that is not what it must be."""


class ModelError(InputError):
    """A model folder, checkpoint or architecture that cannot be loaded."""


class AttachError(InputError):
    """A method that cannot be placed on, or taken off, the modules asked for."""


class AdapterError(InputError):
    """An adapter folder that is missing, damaged or does not fit the model."""


class PlanError(InputError):
    """A memory plan asked for with impossible sizes."""


class DeviceError(InputError):
    """A device that this machine does not have."""


class MergeError(InputError):
    """A merge that cannot be done as asked, or that would keep less of the adapter than was asked for."""


class RunError(LorasmithError, RuntimeError):
    """Work that had begun and could not be finished."""

    exit_code = 1


class WriteError(RunError):
    """A file that could not be written; nothing half-written is left behind."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """The sentence " Did you mean 'x'?" for the choice most like name, or "" where none is near."""
    # upper and lower case are no difference: LORA is near lora
    folded = {choice.casefold(): choice for choice in choices}
    matches = get_close_matches(name.casefold(), folded, n=1, cutoff=0.6)
    return f" Did you mean {folded[matches[0]]!r}?" if matches else ""


def reason(error: BaseException) -> str:
    """What another library's error says first, in one line; the name of its class where it says nothing."""
    said = ""
    for line in filter(None, map(str.strip, str(error).splitlines())):
        said = f"{said} {line}".strip()
        # a heading says nothing without what stands below it
        if not said.endswith(":"):
            break
    return said or type(error).__name__
