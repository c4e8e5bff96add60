"""How many codes are in use, and how evenly: counted over all ranks."""

import torch
from torch import Tensor

from tubesynth.runtime import dist


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
