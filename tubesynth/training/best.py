"""The best checkpoint: one score of validation decides, and the best value so far travels along."""

import math
from dataclasses import dataclass

from tubesynth.runtime.errors import InputError


@dataclass
class Best:
    """Of a score by name, the best value so far and its step; NaN where none was known yet."""

    name: str
    mode: str  # "min" or "max": which way is better
    value: float = math.nan
    step: int | None = None

    def improved(self, scores: dict[str, float], step: int) -> bool:
        """Take over the score of a step where it is better; NaN never beats a number."""
        if self.name not in scores:
            raise InputError(
                f"train.best_score: validation gives no '{self.name}' here, but {list(scores)}:"
                " choose one of these"
            )
        value = scores[self.name]
        better = value < self.value if self.mode == "min" else value > self.value
        if not (better or math.isnan(self.value)):
            return False
        self.value, self.step = value, step
        return True
