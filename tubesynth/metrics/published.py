"""Scores as the published code, the original, defines them (evaluate --as-published), and LPIPS.

Its SSIM and MS-SSIM have a Gaussian window of 4 voxels; its LPIPS is given images in [0, 1] where
the network expects [-1, 1], and is a sum over three planes; its Frechet distance is of raw slices
in [0, 1] at their own size. Names end with _as_published, beside the scores of this program.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from tubesynth.metrics.frechet import frechet_distance, gaussian
from tubesynth.metrics.image import SCALE_WEIGHTS, num_scales, ssim_and_ms_ssim
from tubesynth.metrics.summary import Stat, stat
from tubesynth.metrics.volume_features import Volumes, slices_by_case
from tubesynth.models.perceptual import Lpips, load_perceptual
from tubesynth.runtime.errors import InputError

WINDOW = 4  # voxels of the Gaussian window, of sigma 1.5 as in metrics/image.py
SMALLEST_SLICE = 31  # pixels: the smallest input of AlexNet
SLICES_AT_ONCE = 32
SUFFIX = "_as_published"

Distance = Callable[[Tensor, Tensor], Tensor]  # images (N, 1, H, W) in [0, 1] -> distances (N,)


def similarity_as_published(real: Tensor, other: Tensor) -> dict[str, float]:
    """SSIM and MS-SSIM of two images (X, Y, Z) or (X, Y) in [0, 1].

    MS-SSIM has always five scales, so that a side below 64 voxels has none.
    """
    a, b = real[None, None], other[None, None]
    scales = num_scales(real.shape, WINDOW, ceil_mode=False)
    if scales == 0:
        return {}
    (ssim,), (ms_ssim,), _ = ssim_and_ms_ssim(a, b, 1.0, window=WINDOW, ceil_mode=False)
    scores = {f"ssim{SUFFIX}": ssim}
    return scores | ({f"ms_ssim{SUFFIX}": ms_ssim} if scales == len(SCALE_WEIGHTS) else {})


@torch.no_grad()
def lpips_scores(
    real: Tensor, other: Tensor, distance: Distance, as_published: bool
) -> dict[str, float]:
    """LPIPS of two images (X, Y, Z) or (X, Y) in [0, 1], over all slices that are large enough.

    lpips is the mean over the slices of each plane, and over the planes. As published it is the
    sum over the planes, of images that are not scaled to [-1, 1]; of all slices, where the original
    draws half of them.
    """
    # The y of a picture goes upwards here, and downwards in the original.
    planes = [(real[None].flip(2), other[None].flip(2))]
    if real.ndim == 3:
        planes = [(real.movedim(axis, 0), other.movedim(axis, 0)) for axis in range(3)]
    large = [(a, b) for a, b in planes if min(a.shape[1:]) >= SMALLEST_SLICE]
    if not large:
        return {}
    scores = {"lpips": sum(_mean(distance, a, b) for a, b in large) / len(large)}
    if as_published and len(large) == len(planes):
        # The network scales [0, 1] to [-1, 1], and so (x + 1) / 2 to x.
        scores[f"lpips{SUFFIX}"] = sum(_mean(distance, (a + 1) / 2, (b + 1) / 2) for a, b in large)
    return scores


@lru_cache(maxsize=1)
def load_lpips(*files: str) -> Lpips:
    """LPIPS of these weights, loaded once per process."""
    network = load_perceptual(list(files))
    if not isinstance(network, Lpips):
        raise InputError(f"--lpips {' '.join(files)}: {network.name}: give weights of LPIPS")
    return network


def _mean(distance: Distance, a: Tensor, b: Tensor) -> float:
    """The mean distance of slices (N, H, W)."""
    pairs = zip(a.split(SLICES_AT_ONCE), b.split(SLICES_AT_ONCE), strict=True)
    total = sum(float(distance(x[:, None], y[:, None]).double().sum()) for x, y in pairs)
    return total / len(a)


def frechet_as_published(real: Volumes, other: Volumes) -> dict[str, Stat]:
    """The Frechet distance of each plane between two sets, over all slices of all CTs."""
    if not real or not other:
        return {}
    cases, scores = len({volume.case for volume in other}), {}
    for plane in real[0].slices:
        gaussians = [
            gaussian([*slices_by_case(volumes, plane).values()]) for volumes in (real, other)
        ]
        scores[f"frechet_{plane}{SUFFIX}"] = stat(frechet_distance(*gaussians), cases)
    return scores
