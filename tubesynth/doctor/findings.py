"""What a rule says, and how a list of rules is asked.

A rule is a generator function; its name is the rule's name. It yields what error(), warning() and
info() make: a level, the case that it concerns (None: the whole set) and one line of text.
"""

from collections.abc import Callable
from dataclasses import dataclass

LEVELS = ("error", "warning", "info")


@dataclass(frozen=True)
class Finding:
    level: str
    rule: str
    case: str | None
    message: str


def error(case: str | None, message: str) -> tuple[str, str | None, str]:
    """A run cannot succeed, or would learn from wrong data."""
    return "error", case, message


def warning(case: str | None, message: str) -> tuple[str, str | None, str]:
    """A run would go through; somebody should look."""
    return "warning", case, message


def info(case: str | None, message: str) -> tuple[str, str | None, str]:
    return "info", case, message


def ask(rules: list[Callable], *facts) -> list[Finding]:
    """Every rule's findings, in the order of the list."""
    found = []
    for rule in rules:
        for level, case, message in rule(*facts):
            found.append(Finding(level, rule.__name__, case, " ".join(message.split())))
    return found


def by_level(findings: list[Finding]) -> list[Finding]:
    """Errors first, then warnings; the order stays otherwise."""
    return sorted(findings, key=lambda finding: LEVELS.index(finding.level))
