"""Messages on many cases in few lines: those of one kind differ in names and numbers alone."""

import re
from collections.abc import Iterable

SEPARATE_LINES = 3  # this many cases or fewer with one kind of message have a line each
LISTED_CASES = 12


def lines_by_kind(messages: Iterable[tuple[str, str]]) -> list[str]:
    """For each kind of (case, message) a line for each of a few cases, or one line for all.

    Two kinds, such as a clipped CT and an MR, have remedies of their own.
    """
    kinds: dict[str, list[tuple[str, str]]] = {}
    for case, message in messages:
        kinds.setdefault(_without_names_and_numbers(message, case), []).append((case, message))
    lines = []
    for of_kind in kinds.values():
        if len(of_kind) <= SEPARATE_LINES:
            lines += [f"case {case}: {message}" for case, message in of_kind]
            continue
        ids = list(dict.fromkeys(case for case, _ in of_kind))
        listed = ", ".join(ids[1 : LISTED_CASES + 1])
        listed += ", ..." if len(ids) > LISTED_CASES + 1 else ""
        lines.append(f"{len(ids)} cases, such as {ids[0]}: {of_kind[0][1]} (also {listed})")
    return lines


def _without_names_and_numbers(message: str, case: str) -> str:
    """A message without its words that have a digit, slash or dot; a case's id may have spaces."""
    return re.sub(r"\S*[\d/.]\S*", "", message.replace(f"/{case}", "/"))
