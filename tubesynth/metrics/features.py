"""Features of CT slices: 80 radiomic numbers, or the features of a published network.

`radiomic_features`, the default, takes (N, 1, H, W) in [0, 1] (the HU window [-1000, 1000]) and
gives (N, 80), named by FEATURE_NAMES:
intensity: mean, standard deviation, quantiles, and square roots of the shares of eight tissues;
gradients on four scales (pixels of 1, 2, 4, 8): log energy along each axis, coherence and tails, so
that blur and noise of any scale change them; in the full window the energy alone;
flatness: saturating means of the Laplacian, which count noisy pixels and hardly count edges;
tubes on scales 2, 4, 8: ridges, blobs and valleys by the eigenvalues of the Hessian (Frangi et al.
1998, in 2D), and the top-hat (Serra 1982), which retains bright and thin structures: vessels;
co-occurrence (Haralick et al. 1973) of eight gray levels on scales 2 and 4.

All features except the intensities use the soft-tissue window SOFT_HU. Logarithms have an offset of
about 1 HU, so that a slice of air has finite features. Sizes are in pixels, not mm.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW_HU = (-1000.0, 1000.0)
SOFT_HU = (-150.0, 450.0)
SOFT_SPAN_HU = SOFT_HU[1] - SOFT_HU[0]
TISSUE_EDGES_HU = (-700, -300, -120, -30, 80, 180, 300, 450)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
SCALES = (1, 2, 4, 8)
BINS, GRAY_LEVELS = 250, 8
FLAT_HU = (15.0, 60.0)  # a Laplacian of this size counts half
THIN_HU = 100.0  # a top-hat above it is a vessel (or calcium, or bone)
OFFSET = (1 / SOFT_SPAN_HU) ** 2  # of energies in the soft-tissue window: 1 HU
PIXELS_AT_ONCE = 2**20  # more, and intermediates leave the CPU's cache; fewer, and calls dominate
SMALLEST = 8  # pixels along each axis of a slice

_GRADIENT = ("energy_h", "energy_w", "coherence", "mean_to_rms", "kurtosis", "noisy", "rough")
_TUBE = ("ridge", "ridge_rms", "blob", "valley", "tophat", "tophat_rms", "thin", "thin_share")
_GRAY = ("uniformity", "entropy", "homogeneity", "correlation")
FEATURE_NAMES = [
    "mean",
    "std",
    *(f"quantile_{100 * q:g}" for q in QUANTILES),
    *(f"share_below_{edge}hu" for edge in TISSUE_EDGES_HU),
]
for _scale in SCALES:
    _tubes_and_grays = (_TUBE if _scale > 1 else ()) + (_GRAY if _scale in (2, 4) else ())
    FEATURE_NAMES += [f"{n}_{_scale}" for n in ("full_energy", *_GRADIENT, *_tubes_and_grays)]


@dataclass(frozen=True)
class FeatureFunction:
    """Slices (N, 1, H, W) in [0, 1] -> features (N, D).

    standardize: features have different units, so distances divide each by its standard deviation
    over real slices. window: the HU that become 0 and 1; None for the window of the evaluation.
    """

    function: Callable[[Tensor], Tensor]
    standardize: bool = False
    window: tuple[float, float] | None = None

    def __call__(self, slices: Tensor) -> Tensor:
        return self.function(slices)


@torch.no_grad()
def radiomic_features(slices: Tensor) -> Tensor:
    """(N, 1, H, W) in [0, 1] -> (N, 80) float32."""
    _, channels, height, width = slices.shape
    if channels != 1 or min(height, width) < SMALLEST:
        raise ValueError(f"slices are (N, 1, H, W), {SMALLEST} pixels or more, not {slices.shape}")
    size = max(1, PIXELS_AT_ONCE // (height * width))
    return torch.cat([_features(chunk) for chunk in slices[:, 0].float().split(size)])


RADIOMIC = FeatureFunction(radiomic_features, standardize=True, window=WINDOW_HU)


def load_features(path: str | Path, raw: bool = False) -> FeatureFunction:
    """The feature function of a weights file of a network that models/pretrained.py supports.

    Other files are an InputError. Features are not standardized, so that Frechet distances can be
    compared with published ones. raw: of slices at their own size, not scaled for the weights.
    """
    from tubesynth.models.pretrained import load_network

    network = load_network(path)
    return FeatureFunction(network.raw_features if raw else network.slice_features)


def _features(full: Tensor) -> Tensor:
    """(n, H, W) -> (n, 80)."""
    low, high = ((edge - WINDOW_HU[0]) / (WINDOW_HU[1] - WINDOW_HU[0]) for edge in SOFT_HU)
    soft = ((full - low) * (1 / (high - low))).clamp_(0, 1)
    columns = _histogram(full)
    for scale in SCALES:
        if scale > 1:
            full, soft = _halved(full), _halved(soft)
        energy = _energy(full.diff(dim=1)) + _energy(full.diff(dim=2))
        columns.append(torch.log(energy + OFFSET / 10))
        columns += _gradients(soft)
        if scale > 1:
            columns += _tubes(soft)
        if scale in (2, 4):
            columns += _co_occurrence(soft)
    return torch.stack(columns, 1)


def _histogram(x: Tensor) -> list[Tensor]:
    """Moments, quantiles and tissue shares of (n, H, W), from one histogram (n, BINS) a slice."""
    n, device = len(x), x.device
    bins = (x.reshape(n, -1) * BINS).to(torch.int32).clamp_(0, BINS - 1)
    bins += torch.arange(n, dtype=torch.int32, device=device)[:, None] * BINS
    counts = torch.bincount(bins.flatten(), minlength=n * BINS).reshape(n, BINS)
    share = counts.double() / bins.shape[1]
    # mean = sum_b p_b m_b, variance = sum_b p_b m_b^2 - mean^2, with bin centers m_b
    center = (torch.arange(BINS, device=device, dtype=torch.float64) + 0.5) / BINS
    mean = share @ center
    std = (share @ center.square() - mean.square()).clamp_min(0).sqrt()
    # quantile: the bin in which the cumulative share reaches the level, linear within the bin
    below = share.cumsum(1)
    levels = torch.tensor(QUANTILES, device=device, dtype=torch.float64).expand(n, -1).contiguous()
    index = torch.searchsorted(below, levels).clamp_max(BINS - 1)
    excess = (below.gather(1, index) - levels) / share.gather(1, index).clamp_min(1e-12)
    quantiles = (index + 1 - excess.clamp(0, 1)) / BINS
    # tissue shares between edges; their roots, since |sqrt p - sqrt q|^2 is Hellinger's distance
    span = WINDOW_HU[1] - WINDOW_HU[0]
    edges = [round((edge - WINDOW_HU[0]) / span * BINS) for edge in TISSUE_EDGES_HU]
    shares = below[:, [edge - 1 for edge in edges]].diff(dim=1, prepend=below.new_zeros(n, 1))
    columns = [mean, std, *quantiles.unbind(1), *shares.clamp_min(0).sqrt().unbind(1)]
    return [column.float() for column in columns]


def _gradients(y: Tensor) -> list[Tensor]:
    """Energies, direction, tails and flatness of the gradients of (n, H, W)."""
    down, right = y.diff(dim=1)[:, :, :-1], y.diff(dim=2)[:, :-1]  # (n, H - 1, W - 1)
    energy_h, energy_w = _energy(down), _energy(right)
    energy = energy_h + energy_w
    # structure tensor [[h, hw], [hw, w]]: difference of its eigenvalues over their sum
    difference = (energy_h - energy_w).square() + 4 * (down * right).mean((1, 2)).square()
    squares = (down * down).addcmul_(right, right)
    fourth = _energy(squares)
    magnitude = squares.sqrt_().mean((1, 2))
    laplacian = y[:, :-2, 1:-1] + y[:, 2:, 1:-1]
    laplacian += y[:, 1:-1, :-2]
    laplacian += y[:, 1:-1, 2:]
    laplacian = laplacian.sub_(y[:, 1:-1, 1:-1], alpha=4).abs_()
    return [
        torch.log(energy_h + OFFSET),
        torch.log(energy_w + OFFSET),
        difference.sqrt() / (energy + OFFSET),
        magnitude / (energy + OFFSET).sqrt(),
        torch.log((fourth + OFFSET**2) / (energy + OFFSET).square()),
        *((laplacian / (laplacian + hu / SOFT_SPAN_HU)).mean((1, 2)) for hu in FLAT_HU),
    ]


def _tubes(y: Tensor) -> list[Tensor]:
    """Responses of (n, H, W) to bright, thin and long structures."""
    y = _at_least(y, 5)
    # Hessian by central differences; eigenvalues mean +- spread
    hh = y[:, :-2, 1:-1] + y[:, 2:, 1:-1] - 2 * y[:, 1:-1, 1:-1]
    ww = y[:, 1:-1, :-2] + y[:, 1:-1, 2:] - 2 * y[:, 1:-1, 1:-1]
    hw = (y[:, 2:, 2:] - y[:, 2:, :-2] - y[:, :-2, 2:] + y[:, :-2, :-2]) / 4
    mean = (hh + ww) / 2
    spread = ((hh - ww) / 2).square_().addcmul_(hw, hw).sqrt_()
    ridge, larger = (spread - mean).relu_(), mean + spread
    # top-hat: image minus its opening (erosion, then dilation) by 3 x 3 pixels
    tophat = (y[:, 2:-2, 2:-2] - _maximum(-_maximum(-y))).relu_()
    thin = (tophat - THIN_HU / SOFT_SPAN_HU).relu_()

    def log_mean(response: Tensor) -> Tensor:
        return torch.log(response.mean((1, 2)) + OFFSET**0.5)

    return [
        log_mean(ridge),
        torch.log(_energy(ridge) + OFFSET) / 2,
        log_mean((-larger).relu_()),
        log_mean(larger.relu_()),
        log_mean(tophat),
        torch.log(_energy(tophat) + OFFSET) / 2,
        log_mean(thin),
        (thin > 0).float().mean((1, 2)).sqrt(),
    ]


def _co_occurrence(y: Tensor) -> list[Tensor]:
    """Uniformity, entropy, homogeneity and correlation of the gray levels of neighbors."""
    n, k = len(y), GRAY_LEVELS
    gray = (y * k).to(torch.int32).clamp_(0, k - 1)
    offset = torch.arange(n, dtype=torch.int32, device=y.device)[:, None, None] * k * k
    pairs = [
        (gray[:, :-1] * k + gray[:, 1:] + offset).flatten(),
        (gray[:, :, :-1] * k + gray[:, :, 1:] + offset).flatten(),
    ]
    # p (n, k, k): symmetric joint distribution of the levels of two neighbors
    counts = torch.bincount(torch.cat(pairs), minlength=n * k * k).reshape(n, k, k)
    p = (counts + counts.transpose(1, 2)).double()
    p = p / p.sum((1, 2), keepdim=True)
    level = torch.arange(k, device=y.device, dtype=torch.float64)
    mean = (p.sum(2) @ level)[:, None]
    variance = (p.sum(2) * (level - mean).square()).sum(1)
    covariance = (p * (level - mean)[:, :, None] * (level - mean)[:, None, :]).sum((1, 2))
    columns = [
        p.square().sum((1, 2)).sqrt(),
        -torch.special.xlogy(p, p).sum((1, 2)),
        (p / (1 + (level[:, None] - level).abs())).sum((1, 2)),
        (covariance + 1e-3) / (variance + 1e-3),
    ]
    return [column.float() for column in columns]


def _energy(x: Tensor) -> Tensor:
    """Mean of squares of each slice: (n, H, W) -> (n,)."""
    return torch.linalg.vector_norm(x, dim=(1, 2)).square() / (x.shape[1] * x.shape[2])


def _halved(x: Tensor) -> Tensor:
    """Means of 2 x 2 pixels of (n, H, W), an odd last row or column dropped; at least 3 pixels."""
    x = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
    rows = x[:, ::2] + x[:, 1::2]
    return _at_least((rows[:, :, ::2] + rows[:, :, 1::2]).mul_(0.25), 3)


def _maximum(x: Tensor) -> Tensor:
    """Maximum of 3 x 3 pixels, without a border: (n, H, W) -> (n, H - 2, W - 2)."""
    x = torch.maximum(torch.maximum(x[:, :-2], x[:, 1:-1]), x[:, 2:])
    return torch.maximum(torch.maximum(x[:, :, :-2], x[:, :, 1:-1]), x[:, :, 2:])


def _at_least(x: Tensor, size: int) -> Tensor:
    """(n, H, W) with its last row and column repeated until H and W are at least `size`."""
    padding = [0, max(0, size - x.shape[2]), 0, max(0, size - x.shape[1])]
    return F.pad(x[:, None], padding, mode="replicate")[:, 0] if any(padding) else x
