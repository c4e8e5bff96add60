"""Means of named values over training steps and ranks, for the lines of the training log."""

from collections import defaultdict

import torch
from torch import Tensor

from tubesynth.runtime import dist


class StepMeans:
    """Sums of the values of each step since the last `read`.

    The sums stay on the device and are brought to the host once a line, as EDM2's training
    statistics are (Karras et al. 2024): reading a value in every step would wait for the GPU.
    """

    def __init__(self):
        # Per tuple of names that a phase adds together: the sums (names,) in float64 and the number
        # of steps. A term that begins later than the others gives a new tuple.
        self.sums: dict[tuple[str, ...], Tensor] = {}
        self.steps: dict[tuple[str, ...], int] = {}

    def add(self, values: dict[str, Tensor]) -> None:
        """Add the values of one step, scalars on the device. Every rank adds the same names."""
        if not values:
            return
        names = tuple(values)
        step_values = torch.stack([value.detach().double() for value in values.values()])
        self.sums[names] = self.sums.get(names, 0) + step_values
        self.steps[names] = self.steps.get(names, 0) + 1

    def of_this_rank(self) -> dict[str, float]:
        """The means over the steps so far on this rank alone; the sums stay as they are."""
        totals, counts = self._totals()
        return {name: total / counts[name] for name, total in totals.items()}

    def read(self) -> dict[str, float]:
        """The means over the steps since the last call and over all ranks, equal on every rank."""
        totals, counts = self._totals()
        self.sums.clear()
        self.steps.clear()
        over_ranks = dist.sum_over_ranks(*totals.values())
        return {
            name: total / (counts[name] * dist.world_size())
            for name, total in zip(totals, over_ranks, strict=True)
        }

    def _totals(self) -> tuple[dict[str, float], dict[str, int]]:
        totals: dict[str, float] = defaultdict(float)
        counts: dict[str, int] = defaultdict(int)
        for names, sums in self.sums.items():
            for name, total in zip(names, sums.tolist(), strict=True):
                totals[name] += total
                counts[name] += self.steps[names]
        return totals, counts
