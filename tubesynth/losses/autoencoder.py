"""Losses of stage 1: pure functions of tensors (B, C, X, Y, Z) or (B, C, X, Y) to a scalar.

Networks are passed as callables or by their features. All arithmetic is in 32 bits, also under
autocast.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def l1_loss(image: Tensor, reference: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean absolute difference, or the mean of weight x difference."""
    return _mean((image.float() - reference.float()).abs(), weight)


def l2_loss(image: Tensor, reference: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean squared difference, or the mean of weight x difference."""
    return _mean((image.float() - reference.float()).square(), weight)


def _mean(error: Tensor, weight: Tensor | None) -> Tensor:
    return error.mean() if weight is None else (weight * error).mean()


def region_weights(region: Tensor, factor: float) -> Tensor:
    """(B, X, ...) bool -> (B, 1, X, ...): voxels of the region weigh `factor` times as much.

    The mean weight of every case is 1, so the learning rate and the weights of other losses keep
    their meaning. A case without the region has weight 1 everywhere.
    """
    weight = torch.where(region, factor, 1.0)
    axes = tuple(range(1, region.ndim))
    return (weight / weight.mean(axes, keepdim=True))[:, None]


def spectral_loss(image: Tensor, reference: Tensor) -> Tensor:
    """Mean squared difference of the Fourier amplitudes (Dhariwal et al. 2020, arXiv 2005.00341).

    Orthonormal transform over the spatial axes. The spectrum of a real image is symmetric, so only
    half of it is computed and the frequencies with a mirror image weigh 2.
    """
    with torch.autocast(image.device.type, enabled=False):
        axes = tuple(range(2, image.ndim))
        amplitude, reference_amplitude = (
            torch.fft.rfftn(x.float(), dim=axes, norm="ortho").abs() for x in (image, reference)
        )
        weight = torch.full((amplitude.shape[-1],), 2.0, device=image.device)
        weight[0].fill_(1.0)  # on the device, without a copy
        if image.shape[-1] % 2 == 0:
            weight[-1].fill_(1.0)
        squares = (amplitude - reference_amplitude).square() * weight
        return squares.sum() / image.numel()


def lsgan_generator_loss(fake_scores: Tensor) -> Tensor:
    """Least-squares GAN, generator (Mao et al. 2017, eq. 9): target 1 for fake patches."""
    return (fake_scores.float() - 1).square().mean()


def lsgan_discriminator_loss(real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    """Least-squares GAN, discriminator: target 1 for real and 0 for fake patches."""
    return ((real_scores.float() - 1).square().mean() + fake_scores.float().square().mean()) / 2


def hinge_generator_loss(fake_scores: Tensor) -> Tensor:
    """Hinge GAN, generator (Lim and Ye 2017, arXiv 1705.02894): raise the fake scores."""
    return -fake_scores.float().mean()


def hinge_discriminator_loss(real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    """Hinge GAN, discriminator: real above 1, fake below -1; halved as in Esser et al. 2021."""
    real, fake = F.relu(1 - real_scores.float()), F.relu(1 + fake_scores.float())
    return (real.mean() + fake.mean()) / 2


def leaky_lsgan_generator_loss(fake_scores: Tensor) -> Tensor:
    """Least-squares GAN of MONAI Generative: the scores pass a leaky ReLU, so its gradient for
    negative scores is a twentieth.
    """
    return lsgan_generator_loss(F.leaky_relu(fake_scores.float(), LEAK))


def leaky_lsgan_discriminator_loss(real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    real, fake = F.leaky_relu(real_scores.float(), LEAK), F.leaky_relu(fake_scores.float(), LEAK)
    return lsgan_discriminator_loss(real, fake)


def logistic_discriminator_loss(real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    """Logistic GAN, discriminator (Goodfellow et al. 2014, eq. 1), halved: what the published code
    pairs with the generator of a Wasserstein GAN.
    """
    real, fake = F.softplus(-real_scores.float()), F.softplus(fake_scores.float())
    return (real.mean() + fake.mean()) / 2


LEAK = 0.05
GENERATOR_LOSS = {
    "lsgan": lsgan_generator_loss,
    "hinge": hinge_generator_loss,
    "lsgan_leaky": leaky_lsgan_generator_loss,
    "wasserstein": hinge_generator_loss,  # both raise the fake scores
}
DISCRIMINATOR_LOSS = {
    "lsgan": lsgan_discriminator_loss,
    "hinge": hinge_discriminator_loss,
    "lsgan_leaky": leaky_lsgan_discriminator_loss,
    "wasserstein": logistic_discriminator_loss,
}


def adaptive_weight(
    reconstruction_gradient: Tensor, adversarial_gradient: Tensor, offset: float = 1e-6
) -> Tensor:
    """Weight of the adversarial loss that equalizes both gradient norms (Esser et al. 2021, eq. 7).

    The gradients are those of the decoder's last layer. At most 1e4, as in the authors' code, whose
    offset is 1e-4.
    """
    ratio = reconstruction_gradient.norm() / (adversarial_gradient.norm() + offset)
    # Both gradients may overflow in 16 bits, in a step that is skipped; the loss stays finite.
    return ratio.nan_to_num(nan=0.0).clamp_max(1e4).detach()


def feature_matching_loss(fake: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
    """Sum over a discriminator's layers of the mean absolute difference of its features.

    Wang et al. 2018 (pix2pixHD, arXiv 1711.11585), eq. 4, for one discriminator.
    """
    return torch.stack([l1_loss(a, b) for a, b in zip(fake, real, strict=True)]).sum()


def perceptual_loss(
    distance: Callable[[Tensor, Tensor], Tensor],
    image: Tensor,
    reference: Tensor,
    slices: Sequence[Tensor] = (),
) -> Tensor:
    """Mean distance of corresponding slices, summed over the three planes (2.5D).

    distance: two batches (N, 1, H, W) -> (N,). slices: for each axis of a volume, slice indices
    (B, K) along that axis. An image (B, 1, X, Y) counts as one slice.
    """
    if image.ndim == 4:
        return distance(image, reference).mean()
    distances = [
        distance(take_slices(image, axis, indices), take_slices(reference, axis, indices)).mean()
        for axis, indices in enumerate(slices)
    ]
    return torch.stack(distances).sum()


def take_slices(volume: Tensor, axis: int, indices: Tensor) -> Tensor:
    """(B, 1, X, Y, Z), spatial axis 0 to 2, indices (B, K) -> (B K, 1, H, W)."""
    stack = volume[:, 0].movedim(axis + 1, 1)
    rows = torch.arange(len(stack), device=stack.device)[:, None]
    return stack[rows, indices].flatten(0, 1)[:, None]
