"""What a check finds."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeVar

from lorasmith.errors import InputError
from lorasmith.registry import Registry

Case = TypeVar("Case")
Check = Callable[[Case], Iterable["Finding"]]


@dataclass(frozen=True)
class Finding:
    """One line for the user: what is wrong, and the fix. An error stops the run before step 1."""

    severity: Literal["error", "warning", "note"]
    message: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.message}"


def error(message: str) -> Finding:
    """A finding that stops the run."""
    return Finding("error", message)


def warning(message: str) -> Finding:
    """A finding that is printed, and the run goes on."""
    return Finding("warning", message)


def note(message: str) -> Finding:
    """Something worth knowing that needs no fix."""
    return Finding("note", message)


def examine(checks: "Registry[Check[Case]]", case: Case) -> list[Finding]:
    """Findings of every check; raises InputError with the messages of the errors among them, in one line."""
    findings = [finding for _, check in checks.items() for finding in check(case)]
    errors = [finding.message for finding in findings if finding.severity == "error"]
    if errors:
        raise InputError("; ".join(errors))
    return findings
