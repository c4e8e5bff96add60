"""Averaged weights for sampling: w_ema <- lerp(w_ema, w, 1 - 2^(-1 / half_life)) after every step.

The half-life is in optimiser steps. Early on it is cut to a tenth of the steps done (as EDM2 ramps
it up), so that the average forgets the random start.
"""

import copy

import torch
from torch import Tensor, nn

from tubesynth.runtime.errors import InputError


class Ema:
    """An averaged copy of a module; buffers follow the module as they are."""

    def __init__(self, module: nn.Module, half_life: float):
        self.half_life = half_life
        self.module = copy.deepcopy(module).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """`step`: optimiser steps done, this one included."""
        half_life = min(self.half_life, max(step, 1) / 10)
        weight = 1 - 0.5 ** (1 / half_life)
        averaged = list(self.module.parameters())
        current = [p.detach() for p in module.parameters()]
        torch._foreach_lerp_(averaged, current, weight)
        for mine, theirs in zip(self.module.buffers(), module.buffers(), strict=True):
            mine.copy_(theirs)


def weights_to_use(phase: dict, half_life: float | None = None) -> dict[str, Tensor]:
    """Of a phase's state in a checkpoint: the average of that half-life, by default the first.

    Where no averages are kept, the weights as they are.
    """
    averages = phase["ema"]
    if half_life is None:
        return next(iter(averages.values()), phase["module"])
    if half_life not in averages:
        kept = ", ".join(f"{steps:g}" for steps in averages) or "none"
        raise InputError(
            f"no average with a half-life of {half_life:g} steps in this checkpoint: it has {kept}"
        )
    return averages[half_life]
