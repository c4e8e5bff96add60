"""Losses of stage 1 as pure functions of tensors (B, C, X, Y, Z) or (B, C, X, Y), each a scalar."""

import torch
from torch import Tensor


def spectral_loss(image: Tensor, reference: Tensor) -> Tensor:
    """Mean squared difference of the Fourier amplitudes (Dhariwal et al. 2020, arXiv 2005.00341).

    Orthonormal transform over the spatial axes. The spectrum of a real image is symmetric, so half
    of it is computed and the mirrored part counts by its weight: the value is that of the whole.
    """
    with torch.autocast(image.device.type, enabled=False):
        axes = tuple(range(2, image.ndim))
        amplitude, reference_amplitude = (
            torch.fft.rfftn(x.float(), dim=axes, norm="ortho").abs() for x in (image, reference)
        )
        last = image.shape[-1]
        weight = torch.full((amplitude.shape[-1],), 2.0, device=image.device)
        weight[0] = 1.0
        if last % 2 == 0:
            weight[-1] = 1.0
        squares = (amplitude - reference_amplitude).square() * weight
        return squares.sum() / image.numel()


def lsgan_generator_loss(fake_scores: Tensor) -> Tensor:
    """Least squares GAN, generator (Mao et al. 2017, eq. 9): fakes are to be scored 1."""
    return (fake_scores.float() - 1).square().mean()


def lsgan_discriminator_loss(real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    """Least squares GAN, discriminator: reals are to be scored 1 and fakes 0."""
    return ((real_scores.float() - 1).square().mean() + fake_scores.float().square().mean()) / 2


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """1 - soft Dice of the whole batch (Milletari et al. 2016); target in {0, 1}, one shape."""
    probability, target = logits.float().sigmoid(), target.float()
    overlap = 2 * (probability * target).sum()
    return 1 - (overlap + 1) / (probability.sum() + target.sum() + 1)
