"""Continuous latents: a diagonal Gaussian posterior with a small KL loss to N(0, 1).

Kingma and Welling 2014 (arXiv 1312.6114), appendix B, with the small weight of Rombach et al. 2022
(arXiv 2112.10752, the KL-regularized autoencoders of appendix G).
"""

import torch
from torch import Tensor, nn

LOG_VARIANCE = (-30.0, 20.0)  # beyond these bounds exp leaves the range of 32 bits


class GaussianPosterior(nn.Module):
    """The encoder outputs mean and log-variance. The decoder input is a sample in training mode,
    and the mean in evaluation mode.
    """

    num_codes = None

    def __init__(self, embedding_dim: int, kl_weight: float):
        super().__init__()
        self.in_channels = 2 * embedding_dim
        self.kl_weight = kl_weight

    def forward(self, encoded: Tensor) -> tuple[Tensor, dict[str, Tensor], None]:
        """(B, 2 D, ...) -> (B, D, ...), {"kl": weight x nats per latent cell}, no indices.

        The noise comes from torch's global generator, which the training loop seeds at every step.
        """
        mean, log_variance = encoded.float().chunk(2, dim=1)
        log_variance = log_variance.clamp(*LOG_VARIANCE)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
        terms = {"kl": self.kl_weight * kl.sum(1).mean()}
        if not self.training:
            return mean, terms, None
        return mean + (0.5 * log_variance).exp() * torch.randn_like(mean), terms, None

    def latents(self, encoded: Tensor) -> Tensor:
        """(B, 2 D, ...) -> the mean (B, D, ...)."""
        return encoded.chunk(2, dim=1)[0]

    def quantize(self, latents: Tensor) -> Tensor:
        """The latents, unchanged: the decoder is trained on continuous latents."""
        return latents
