"""Findings, the result of doctor's rules, and how a list of rules is applied.

A rule is a generator function, and its name is the name of the rule. It yields tuples of `error`,
`warning` or `info`: a level, the case that it concerns (None: the whole set), one line of text.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

LEVELS = ("error", "warning", "info")

Result = tuple[str, str | None, str]  # level, case, message
Results = Iterator[Result]
Rule = Callable[..., Results]


@dataclass(frozen=True)
class Finding:
    level: str
    rule: str
    case: str | None
    message: str


def error(case: str | None, message: str) -> Result:
    """A run cannot succeed, or would learn from wrong data."""
    return "error", case, message


def warning(case: str | None, message: str) -> Result:
    """A run would go through, but the data or the setting is unusual."""
    return "warning", case, message


def info(case: str | None, message: str) -> Result:
    """A fact about the data or the machine."""
    return "info", case, message


def apply_rules(rules: Sequence[Rule], *arguments: object) -> list[Finding]:
    """The findings of every rule, in the order of the list."""
    return [
        Finding(level, rule.__name__, case, " ".join(message.split()))
        for rule in rules
        for level, case, message in rule(*arguments)
    ]


def by_level(findings: list[Finding]) -> list[Finding]:
    """Errors first, then warnings; within a level the order stays."""
    return sorted(findings, key=lambda finding: LEVELS.index(finding.level))
