"""Training steps whose loss or gradient is not finite: counted, explained, and fatal in a row."""

from tubesynth.runtime import dist
from tubesynth.runtime.errors import InputError
from tubesynth.runtime.log import logger

# The inputs of a batch that may hold a value that is not finite.
INPUTS = ("image", "image_fields", "latent", "fields")


class BadStepGuard:
    """Stops a run after more than `budget` consecutive steps with a non-finite loss or gradient."""

    def __init__(self, budget: int):
        self.budget = budget
        self.in_a_row = 0

    def reset(self) -> None:
        """Start counting again, after a step with finite values."""
        self.in_a_row = 0

    def add_failure(self, step: int, phase: str, problem: str, cases: str) -> None:
        """Count one step; InputError, with phase, loss names and cases, above the budget."""
        self.in_a_row += 1
        fault = f"step {step}, {phase}: {problem} is not finite ({cases})"
        logger.warning(f"{fault}: the step is skipped")
        if self.in_a_row > self.budget:
            raise InputError(
                f"{fault}, {self.in_a_row} steps in a row: lower train.learning_rate, set"
                " train.gradient_clip, or train.precision=32; the checkpoints before are kept"
            )


def suspects(micro_batches: list[dict]) -> str:
    """The cases of a step over all ranks; only those with inputs that are not finite, if any."""
    rows = []
    for batch in micro_batches:
        inputs = [batch[name] for name in INPUTS if name in batch]
        for row, case in enumerate(batch["case"]):
            finite = all(bool(values[row].isfinite().all()) for values in inputs)
            rows.append({"case": case, "finite": finite})
    rows = dist.gather_rows(rows)
    damaged = [row["case"] for row in rows if not row["finite"]]
    names = ", ".join(dict.fromkeys(damaged or [row["case"] for row in rows]))
    return f"input of case {names}" if damaged else f"case {names}"
