"""Averaged weights for sampling: w_ema <- lerp(w_ema, w, 1 - 2^(-1 / half_life)) after every step.

The half-life is in optimizer steps. Early on it is cut to a tenth of the steps so far (the ramp-up
of EDM2, Karras et al. 2024), so that the average forgets the random start.
"""

import copy

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Ema:
    """An averaged copy of a module; its buffers are copied, not averaged, and frozen weights are
    those of the module itself.
    """

    def __init__(self, module: nn.Module, half_life: float):
        self.half_life = half_life
        frozen = {id(p): p for p in module.parameters() if not p.requires_grad}
        self.module = copy.deepcopy(module, frozen).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """step: the number of optimizer steps, this one included."""
        half_life = min(self.half_life, max(step, 1) / 10)
        pairs = zip(self.module.parameters(), module.parameters(), strict=True)
        trained = [(average, p.detach()) for average, p in pairs if p.requires_grad]
        averaged, current = map(list[Tensor], zip(*trained, strict=True))
        lerp = get_ema_multi_avg_fn(0.5 ** (1 / half_life))  # all tensors in a few kernels
        lerp(averaged, current, step)
        for average, buffer in zip(self.module.buffers(), module.buffers(), strict=True):
            average.copy_(buffer)
