"""Vector quantization with a codebook updated by exponential moving averages.

van den Oord et al. 2017 (arXiv 1711.00937), appendix A.1. Statistics are summed over all ranks, so
every rank holds the same codebook. A code that was unused for a number of steps is revived: it is
replaced by a vector of the current batch.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from tubesynth.models.quantizers.search import nearest_code


class EmaQuantizer(nn.Module):
    """A codebook of K codes with D channels. Latents are the encoder's output, not quantized."""

    codebook: Tensor
    ema_count: Tensor
    ema_sum: Tensor
    unused_steps: Tensor
    initialised: Tensor

    def __init__(
        self,
        codebook_size: int,
        embedding_dim: int,
        *,
        commitment: float,
        decay: float,
        revive_after: int,
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
        # Spelled so in every checkpoint; the digest of an autoencoder covers the names of buffers.
        self.register_buffer("initialised", torch.tensor(False))
        # What the host knows without waiting for the device: whether the codebook is initialised,
        # and for how many steps no code can have been unused for revive_after steps.
        self.known_initialised, self.steps_without_dead = False, 0
        self.register_load_state_dict_post_hook(EmaQuantizer._forget)

    def forward(self, encoded: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """(B, D, ...) -> nearest codes (straight-through gradient), {"commitment": weighted loss},
        indices (B, ...). In training mode the codebook is updated.
        """
        # Distances lose too many digits to cancellation in 16 bits, so autocast is disabled.
        with torch.autocast(encoded.device.type, enabled=False):
            encoded = encoded.float()
            vectors = _as_vectors(encoded.detach())
            if self.training and not self.known_initialised:
                if not self.initialised:
                    self._initialize(vectors)
                self.known_initialised = True
            flat_indices = nearest_code(vectors, self.codebook)
            indices = flat_indices.view(encoded.shape[0], *encoded.shape[2:])
            quantized = self.lookup(indices)
            if self.training:
                self._update(vectors, flat_indices)
            terms = {"commitment": self.commitment * F.mse_loss(encoded, quantized)}
            # Straight-through estimator: the gradient of the decoder passes to the encoder.
            return encoded + (quantized - encoded).detach(), terms, indices

    def latents(self, encoded: Tensor) -> Tensor:
        """The encoder's output, unchanged."""
        return encoded

    def quantize(self, latents: Tensor) -> Tensor:
        """(B, D, ...) latents -> nearest codes, in 32 bits. The codebook is not updated."""
        with torch.autocast(latents.device.type, enabled=False):
            indices = nearest_code(_as_vectors(latents.float()), self.codebook)
            return self.lookup(indices.view(latents.shape[0], *latents.shape[2:]))

    def lookup(self, indices: Tensor) -> Tensor:
        """(B, ...) indices -> (B, D, ...) codes."""
        return F.embedding(indices, self.codebook).movedim(-1, 1)

    @torch.no_grad()
    def _initialize(self, vectors: Tensor) -> None:
        """Start from vectors of the first batch; most random codes would never be chosen."""
        finite = vectors[vectors.isfinite().all(1)]
        self.codebook.copy_(self._sample(finite, len(self.codebook)))
        self.ema_sum.copy_(self.codebook)
        self.ema_count.fill_(1.0)
        self.initialised.fill_(True)

    def _sample(self, vectors: Tensor, count: int) -> Tensor:
        """`count` random vectors, all finite, of all ranks plus slight noise, equal on every rank.

        Rank 0 draws, so ranks with one sample each choose the vectors that one rank with all
        samples does.
        """
        vectors = vectors.double()
        numel = vectors.new_full((), vectors.numel())
        moments = torch.stack([numel, vectors.sum(), vectors.square().sum()])
        by_rank = torch.stack(_of_all_ranks(moments))
        numbers = [int(numel) // vectors.shape[1] for numel in by_rank[:, 0].tolist()]
        numel, total, square = by_rank.sum(0)

        choice = torch.randint(sum(numbers) or len(self.codebook), (count,), device=vectors.device)
        noise = torch.randn(count, vectors.shape[1], device=vectors.device)
        if dist.is_initialized():
            dist.broadcast(choice, src=0)
            dist.broadcast(noise, src=0)
        if sum(numbers) == 0:  # no vector is finite
            return self.codebook[choice]

        # Each rank fills in the rows of its own vectors.
        rank = dist.get_rank() if dist.is_initialized() else 0
        row = choice - sum(numbers[:rank])
        of_this_rank = (row >= 0) & (row < numbers[rank])
        sample = torch.zeros_like(noise)
        if numbers[rank]:
            own = vectors[row.clamp(0, numbers[rank] - 1)].float()
            sample = torch.where(of_this_rank[:, None], own, sample)
        if dist.is_initialized():
            dist.all_reduce(sample)
        variance = (square - total.square() / numel) / (numel - 1).clamp_min(1)
        return sample + 1e-3 * variance.clamp_min(0).sqrt().float() * noise

    @torch.no_grad()
    def _update(self, vectors: Tensor, indices: Tensor) -> None:
        """Move each used code towards the mean of the vectors assigned to it.

        N_k <- decay N_k + (1 - decay) n_k, m_k <- decay m_k + (1 - decay) sum of the vectors of k,
        code k = m_k / N_k (appendix A.1).
        """
        # Vectors that are not finite are left out: one NaN would stay in the averages for ever.
        finite = vectors.isfinite().all(1)
        values = torch.where(finite[:, None], vectors, 0)
        count = torch.zeros_like(self.ema_count).index_add_(0, indices, finite.float())
        total = torch.zeros_like(self.codebook).index_add_(0, indices, values)
        if dist.is_initialized():
            packed = torch.cat([count[:, None], total], dim=1)
            dist.all_reduce(packed)
            count, total = packed[:, 0], packed[:, 1:]
        self.ema_count.lerp_(count, 1 - self.decay)
        self.ema_sum.lerp_(total, 1 - self.decay)
        self._move_codes()

        self.unused_steps.add_(1).masked_fill_(count > 0, 0)
        if self.revive_after and self._may_have_dead_codes():
            self._revive(vectors, finite)

    def _may_have_dead_codes(self) -> bool:
        """Whether a code can have been unused for revive_after steps, asked once a step."""
        if torch.compiler.is_compiling():  # a number that changes would be compiled every step
            return True
        self.steps_without_dead -= 1
        return self.steps_without_dead <= 0

    def _revive(self, vectors: Tensor, finite: Tensor) -> None:
        """Replace the codes that are unused for revive_after steps, the same on every rank."""
        dead = self.unused_steps >= self.revive_after
        longest_unused = self.unused_steps.masked_fill(dead, 0).max()
        count, steps = torch.stack([dead.sum(), longest_unused]).tolist()
        self.steps_without_dead = self.revive_after - steps
        if count:
            codes = dead.byte().argsort(descending=True, stable=True)[:count]  # nonzero waits
            revived = self._sample(vectors[finite], count)
            self.codebook[codes] = revived
            self.ema_sum[codes] = revived
            self.ema_count[codes] = 1.0
            self.unused_steps[codes] = 0

    def _forget(self, incompatible_keys=None) -> None:
        """Ask the device again, as other buffers have been loaded."""
        self.known_initialised, self.steps_without_dead = False, 0

    def _move_codes(self) -> None:
        """Each code to the mean of its vectors.

        m_k and N_k decay together while code k is unused, so the code stays where it was. Below the
        threshold their quotient is rounding noise, and the code is not changed.
        """
        used = self.ema_count > 1e-5
        mean = self.ema_sum / self.ema_count.clamp_min(1e-5)[:, None]
        self.codebook.copy_(torch.where(used[:, None], mean, self.codebook))


class PublishedEmaQuantizer(EmaQuantizer):
    """The published codebook: it starts from normal numbers, no code is revived, and the counts are
    smoothed (van den Oord's code): N_k <- n (N_k + e) / (n + K e), n the sum of all N_k.

    A code that is unused from the start jumps to 0.5 / e times its value at the first step and is
    halved at each further one.
    """

    SMOOTHING = 1e-5

    def __init__(self, codebook_size: int, embedding_dim: int, *, commitment: float, decay: float):
        super().__init__(
            codebook_size, embedding_dim, commitment=commitment, decay=decay, revive_after=0
        )
        self.codebook.normal_()
        self.ema_sum.copy_(self.codebook)
        self.initialised.fill_(True)

    def _move_codes(self) -> None:
        total, offset = self.ema_count.sum(), self.SMOOTHING
        share = (self.ema_count + offset) / (total + len(self.codebook) * offset)
        self.codebook.copy_(self.ema_sum / (share * total)[:, None])


def _of_all_ranks(tensor: Tensor) -> list[Tensor]:
    """The tensor of every rank, in the order of the ranks."""
    if not dist.is_initialized():
        return [tensor]
    tensors = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(tensors, tensor)
    return tensors


def _as_vectors(latents: Tensor) -> Tensor:
    """(B, D, ...) -> (N, D)."""
    return latents.movedim(1, -1).reshape(-1, latents.shape[1])
