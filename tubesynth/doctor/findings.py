"""Findings, the result of doctor's rules, and how a list of rules is applied.

A rule is a generator function, and its name is the name of the rule. It yields tuples of `error`,
`warning` or `info`: a level, one line of text, and where the rule is not on one case alone the case
that it concerns (None: the whole set).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

LEVELS = ("error", "warning", "info")

Result = tuple[str, str, str | None]  # level, message, case
Results = Iterator[Result]
Rule = Callable[..., Results]


@dataclass(frozen=True)
class Finding:
    level: str
    rule: str
    case: str | None
    message: str


def error(message: str, case: str | None = None) -> Result:
    """A run cannot succeed, or would learn from wrong data."""
    return "error", message, case


def warning(message: str, case: str | None = None) -> Result:
    """A run would go through, but the data or the setting is unusual."""
    return "warning", message, case


def info(message: str) -> Result:
    """A fact about the data or the machine."""
    return "info", message, None


def apply_rules(
    rules: Sequence[Rule], *arguments: object, case: str | None = None
) -> list[Finding]:
    """The findings of every rule, in the order of the list; case: that all of them are on."""
    return [
        Finding(level, rule.__name__, case or of_case, " ".join(message.split()))
        for rule in rules
        for level, message, of_case in rule(*arguments)
    ]


def by_level(findings: list[Finding]) -> list[Finding]:
    """Errors first, then warnings; within a level the order stays."""
    return sorted(findings, key=lambda finding: LEVELS.index(finding.level))
