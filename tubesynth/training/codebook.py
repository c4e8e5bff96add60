"""Usage scores of a codebook, counted over all ranks, and a warning when it has collapsed.

A lasting collapse has its cause in the encoder: too large steps kill its ReLU units, so its output
is the same vector everywhere, and revived codes are copies of that vector. Dead units have no
gradient and do not recover, so the run warns the user.
"""

import torch
from torch import Tensor

from tubesynth.runtime import dist
from tubesynth.runtime.log import logger

# Few codes are used until unused ones have been revived. Later, the perplexity of the runs of
# docs/notebook.md is 20 to 80 % of their number of codes.
SETTLING_STEPS = 100
COLLAPSED_SHARE = 0.01


class CodebookUsage:
    """Counts how often each code was chosen since the last scores."""

    def __init__(self, num_codes: int, device: torch.device):
        self.counts = torch.zeros(num_codes, dtype=torch.long, device=device)

    def add(self, indices: Tensor) -> None:
        """indices: any shape, on the device."""
        indices = indices.flatten()  # bincount would wait for the device to learn its length
        self.counts.index_add_(0, indices, torch.ones_like(indices))

    def scores(self) -> dict[str, float]:
        """codebook_used: the share of codes that were chosen; codebook_perplexity: exp(entropy) =
        exp(-sum p log p), the effective number of codes. Equal on every rank; resets the counts.
        """
        counts = torch.tensor(dist.sum_over_ranks(*self.counts.tolist()), dtype=torch.float64)
        self.counts.zero_()
        share = counts / counts.sum()
        return {
            "codebook_used": (share > 0).double().mean().item(),
            "codebook_perplexity": torch.special.entr(share).sum().exp().item(),
        }


class CollapseWarning:
    """Warns once that the codebook has collapsed, from SETTLING_STEPS after the warm-up on."""

    def __init__(self, num_codes: int, warmup_steps: int):
        self.num_codes, self.from_step = num_codes, warmup_steps + SETTLING_STEPS
        self.has_warned = False

    def check(self, step: int, perplexity: float) -> None:
        collapsed = perplexity < max(1.5, COLLAPSED_SHARE * self.num_codes)
        if self.has_warned or step < self.from_step or not collapsed:
            return
        self.has_warned = True
        logger.warning(
            f"step {step}: the codebook has collapsed: {perplexity:.1f} of its {self.num_codes}"
            " codes are in effective use. Encoder units that died under too large steps do not"
            " recover: start a new run with a lower train.learning_rate or more train.warmup_steps"
        )
