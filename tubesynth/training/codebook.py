"""How many codes are in use, and how evenly: counted over all ranks; and when they no longer are.

A collapse that lasts is the encoder's: its rectified units die under steps that are too large, its
output is one vector everywhere, and codes that are drawn anew from it are that vector again. Dead
units have no gradient, so it is told to the user, who alone can mend it.
"""

import torch
from torch import Tensor
from tqdm import tqdm

from tubesynth.runtime import dist

# Early on few codes are used, until those that nothing has chosen are drawn anew; from then on runs
# of docs/results.md use 20 to 80 % of theirs, as the perplexity counts them.
SETTLING_STEPS = 100
COLLAPSED_SHARE = 0.01


class CodebookUsage:
    """Counts the codes that were chosen since the last scores."""

    def __init__(self, num_codes: int, device: torch.device):
        self.counts = torch.zeros(num_codes, dtype=torch.long, device=device)

    def add(self, indices: Tensor) -> None:
        """indices: any shape, on the device."""
        self.counts += torch.bincount(indices.flatten(), minlength=len(self.counts))

    def scores(self) -> dict[str, float]:
        """Share of the codes that were used, and the perplexity exp(-sum p log p): as many codes,
        used evenly, would tell as much. The same on every rank; counting starts anew.
        """
        counts = torch.tensor(dist.sum_over_ranks(*self.counts.tolist()), dtype=torch.float64)
        self.counts.zero_()
        share = counts / counts.sum()
        return {
            "codebook_used": (share > 0).double().mean().item(),
            "codebook_perplexity": torch.special.entr(share).sum().exp().item(),
        }


class CollapseWarning:
    """Says once that the codebook has collapsed, after the warm-up and some steps to settle."""

    def __init__(self, num_codes: int, warmup_steps: int):
        self.num_codes, self.from_step = num_codes, warmup_steps + SETTLING_STEPS
        self.told = False

    def look(self, step: int, perplexity: float) -> None:
        collapsed = perplexity < max(1.5, COLLAPSED_SHARE * self.num_codes)
        if self.told or step < self.from_step or not collapsed:
            return
        self.told = True
        if dist.is_main():
            tqdm.write(
                f"step {step}: the codebook has collapsed: its {self.num_codes} codes tell as much"
                f" as {perplexity:.1f}. Units of the encoder that died under too large steps do not"
                " come back: start anew with a lower train.learning_rate or more"
                " train.warmup_steps"
            )
