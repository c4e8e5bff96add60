"""Vector quantization with a codebook that follows the data by moving averages.

van den Oord et al. 2017 (arXiv 1711.00937), appendix A.1 for the averages. Statistics are summed
over all ranks, so every rank holds the same codebook. A code that nothing has chosen for a while is
drawn anew from the data.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from tubesynth.models.quantizers.search import nearest_code


class EmaQuantizer(nn.Module):
    """Codebook of K vectors of D channels; the encoder's output itself is the latent."""

    def __init__(
        self,
        codebook_size: int,
        embedding_dim: int,
        commitment: float = 0.25,
        decay: float = 0.5,
        revive_after: int = 0,
    ):
        super().__init__()
        self.in_channels, self.num_codes = embedding_dim, codebook_size
        self.commitment = commitment
        self.decay = decay
        self.revive_after = revive_after
        self.register_buffer("codebook", torch.zeros(codebook_size, embedding_dim))
        self.register_buffer("ema_count", torch.zeros(codebook_size))
        self.register_buffer("ema_sum", torch.zeros(codebook_size, embedding_dim))
        self.register_buffer("unused_steps", torch.zeros(codebook_size, dtype=torch.long))
        self.register_buffer("initialised", torch.tensor(False))

    def forward(self, encoded: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """(B, D, ...) -> nearest codes (straight-through gradient), {"commitment": weighted loss},
        indices (B, ...). In training the codebook follows.
        """
        # Distances cancel badly in 16 bits, so autocast stays outside.
        with torch.autocast(encoded.device.type, enabled=False):
            encoded = encoded.float()
            vectors = _as_vectors(encoded.detach())
            if self.training and not self.initialised:
                self._initialise(vectors)
            flat_indices = nearest_code(vectors, self.codebook)
            indices = flat_indices.view(encoded.shape[0], *encoded.shape[2:])
            quantized = self.lookup(indices)
            if self.training:
                self._follow(vectors, flat_indices)
            terms = {"commitment": self.commitment * F.mse_loss(encoded, quantized)}
            # Straight-through: the decoder's gradient passes to the encoder as it is.
            return encoded + (quantized - encoded).detach(), terms, indices

    def latents(self, encoded: Tensor) -> Tensor:
        """The encoder's output as it is: no code is looked for."""
        return encoded

    def quantize(self, latents: Tensor) -> Tensor:
        """(B, D, ...) latents -> the nearest codes, in 32 bits; the codebook stays as it is."""
        with torch.autocast(latents.device.type, enabled=False):
            indices = nearest_code(_as_vectors(latents.float()), self.codebook)
            return self.lookup(indices.view(latents.shape[0], *latents.shape[2:]))

    def lookup(self, indices: Tensor) -> Tensor:
        """(B, ...) indices -> (B, D, ...) codes."""
        return F.embedding(indices, self.codebook).movedim(-1, 1)

    @torch.no_grad()
    def _initialise(self, vectors: Tensor):
        """Codes start as vectors of the first batch; most random codes would never be hit."""
        self.codebook.copy_(self._draw(vectors, len(self.codebook)))
        self.ema_sum.copy_(self.codebook)
        self.ema_count.fill_(1.0)
        self.initialised.fill_(True)

    def _draw(self, vectors: Tensor, count: int) -> Tensor:
        """`count` vectors of rank 0's batch, the same on every rank, slightly apart from each
        other.
        """
        vectors = vectors[vectors.isfinite().all(1)]
        if len(vectors) == 0:
            vectors = self.codebook
        picked = vectors[torch.randint(len(vectors), (count,), device=vectors.device)]
        picked = picked + 1e-3 * vectors.std() * torch.randn_like(picked)
        if dist.is_initialized():
            dist.broadcast(picked, src=0)
        return picked

    @torch.no_grad()
    def _follow(self, vectors: Tensor, indices: Tensor):
        """Move each used code towards the mean of the vectors that chose it."""
        # One NaN would stay in the averages for ever; a step that is skipped must leave no trace.
        finite = vectors.isfinite().all(1)
        vectors = torch.where(finite[:, None], vectors, 0)
        count = torch.bincount(indices, weights=finite.float(), minlength=len(self.codebook))
        total = torch.zeros_like(self.codebook).index_add_(0, indices, vectors)
        if dist.is_initialized():
            packed = torch.cat([count[:, None], total], dim=1)
            dist.all_reduce(packed)
            count, total = packed[:, 0], packed[:, 1:]
        self.ema_count.lerp_(count, 1 - self.decay)
        self.ema_sum.lerp_(total, 1 - self.decay)
        # A code's mean is sum / count; both fade together while it is unused, so it stays where it
        # was. Below the threshold the quotient is rounding noise and the code is left alone.
        used = self.ema_count > 1e-5
        mean = self.ema_sum / self.ema_count.clamp_min(1e-5)[:, None]
        self.codebook.copy_(torch.where(used[:, None], mean, self.codebook))

        self.unused_steps.add_(1).masked_fill_(count > 0, 0)
        if self.revive_after:
            dead = self.unused_steps >= self.revive_after
            if dead.any():  # the same on every rank, since the counts are summed
                fresh = self._draw(vectors, int(dead.sum()))
                self.codebook[dead] = fresh
                self.ema_sum[dead] = fresh
                self.ema_count[dead] = 1.0
                self.unused_steps[dead] = 0


def _as_vectors(latents: Tensor) -> Tensor:
    """(B, D, ...) -> (N, D)."""
    return latents.movedim(1, -1).reshape(-1, latents.shape[1])
