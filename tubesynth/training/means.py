"""Means of named values over training steps and ranks, for the lines of the training log.

A checkpoint holds what has been added since the last line, so that the line after a resume is that
of the uninterrupted run.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tubesynth.build.checkpoint import IntervalState
from tubesynth.runtime import dist
from tubesynth.training.phase import Phase


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
        # After a resume on another number of ranks, ranks have different names and counts.
        ranks = dist.gather_rows([{name: (totals[name], counts[name]) for name in totals}])
        summed: dict[str, tuple[float, int]] = {}
        for rank in ranks:
            for name, (total, count) in rank.items():
                others, steps = summed.get(name, (0.0, 0))
                summed[name] = others + total, steps + count
        return {name: total / count for name, (total, count) in summed.items()}

    def state(self) -> dict[str, Tensor]:
        """{"name,name": float64 (1 + names,)}: the number of steps, then the sums, of this rank."""
        return {
            ",".join(names): torch.cat([sums.new_tensor([self.steps[names]]), sums]).cpu()
            for names, sums in self.sums.items()
        }

    def add_state(self, state: dict[str, Tensor], device: torch.device) -> None:
        """Add the steps of `state`."""
        for joined, (steps, *sums) in state.items():
            names = tuple(joined.split(","))
            self.sums[names] = self.sums.get(names, 0) + torch.stack(sums).to(device)
            self.steps[names] = self.steps.get(names, 0) + int(steps)

    def _totals(self) -> tuple[dict[str, float], dict[str, int]]:
        totals: dict[str, float] = defaultdict(float)
        counts: dict[str, int] = defaultdict(int)
        for names, sums in self.sums.items():
            for name, total in zip(names, sums.tolist(), strict=True):
                totals[name] += total
                counts[name] += self.steps[names]
        return totals, counts


@dataclass
class Interval:
    """The training steps since the last line of metrics.jsonl."""

    means: StepMeans = field(default_factory=StepMeans)
    steps: int = 0
    skipped_steps: int = 0

    def start(self) -> None:
        """Begin the next interval; `means` has been read."""
        self.steps = self.skipped_steps = 0

    def state(self, phases: Sequence[Phase]) -> IntervalState:
        """The state of all ranks, on every rank; every rank must call it."""
        sums = dist.gather_rows([self.means.state()])
        counts = {p.name: dist.summed(p.counts) for p in phases if p.counts is not None}
        return IntervalState(self.steps, self.skipped_steps, dict(enumerate(sums)), counts)

    def load(self, state: IntervalState, phases: Sequence[Phase], device: torch.device) -> None:
        """Continue an interval. Each rank continues its own sums; rank 0 those of absent ranks."""
        self.steps, self.skipped_steps = state.steps, state.skipped_steps
        for rank, sums in state.sums.items():
            if dist.rank() == (rank if rank < dist.world_size() else 0):
                self.means.add_state(sums, device)
        for phase in phases:
            if phase.name in state.counts and phase.counts is not None and dist.is_main():
                phase.counts.copy_(state.counts[phase.name])
