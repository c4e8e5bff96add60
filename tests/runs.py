"""Commands in the process of the test, and what a training run wrote."""

import json
from pathlib import Path


def run(command, *arguments) -> None:
    command.main([str(argument) for argument in arguments])


def lines(run_dir: Path, split: str | None = None) -> list[dict]:
    """The lines of metrics.jsonl, of one split where it is given."""
    text = (run_dir / "metrics.jsonl").read_text(encoding="utf-8")
    return [line for line in map(json.loads, text.splitlines()) if split in (None, line["split"])]
