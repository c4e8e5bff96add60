"""What a CT slice looks like in 80 numbers, without trained weights: the default of the Frechet
distance.

`radiomic_features(slices)` takes (N, 1, H, W) in [0, 1] (the HU window [-1000, 1000]) and gives
(N, 80), named by FEATURE_NAMES:
intensity: mean, spread, quantiles, and roots of the shares of eight tissues in HU (Hellinger);
gradients on four scales (pixels of 1, 2, 4, 8): log energy along each axis, their coherence, and
how heavy-tailed they are, so that blur and noise of any scale show; of the full window the energy
alone, of the soft-tissue window (SOFT_HU) all;
flatness: saturating means of the Laplacian, which count noisy pixels and hardly edges;
tubes on scales 2, 4, 8: ridges, blobs and valleys by the eigenvalues of the Hessian (Frangi et al.
1998, in 2D) and the top-hat (Serra 1982), which keeps only what is bright and thin: vessels;
co-occurrence (Haralick et al. 1973) of eight grey levels on scales 2 and 4.

Logarithms have a floor of about 1 HU, so a slice of air is legal. Sizes count pixels, not mm.
"""

import torch

WINDOW_HU = (-1000.0, 1000.0)
SOFT_HU = (-150.0, 450.0)
TISSUE_EDGES_HU = (-700, -300, -120, -30, 80, 180, 300, 450)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
SCALES = (1, 2, 4, 8)
BINS, GREY_LEVELS = 250, 8
FLAT_HU = (15.0, 60.0)  # a Laplacian of that much counts half
THIN_HU = 100.0  # a top-hat above it is a vessel (or calcium, or bone)
FLOOR = (1.0 / 600) ** 2  # of energies in the soft-tissue window: 1 HU
PIXELS_AT_ONCE = 2**20  # larger, and intermediates leave the cache; smaller, and calls dominate
SMALLEST = 8  # pixels along each axis of a slice

_GRADIENT = ("energy_h", "energy_w", "coherence", "mean_to_rms", "kurtosis", "noisy", "rough")
_TUBE = ("ridge", "ridge_rms", "blob", "valley", "tophat", "tophat_rms", "thin", "thin_share")
_GREY = ("uniformity", "entropy", "homogeneity", "correlation")
FEATURE_NAMES = (
    "mean",
    "std",
    *(f"quantile_{100 * q:g}" for q in QUANTILES),
    *(f"share_below_{edge}hu" for edge in TISSUE_EDGES_HU),
    *(
        name
        for s in SCALES
        for name in (
            f"full_energy_{s}",
            *(f"{g}_{s}" for g in _GRADIENT),
            *(f"{t}_{s}" for t in _TUBE if s > 1),
            *(f"{g}_{s}" for g in _GREY if s in (2, 4)),
        )
    ),
)


@torch.no_grad()
def radiomic_features(slices: torch.Tensor) -> torch.Tensor:
    """(N, 1, H, W) in [0, 1] -> (N, 80) float32."""
    n, channels, height, width = slices.shape
    if channels != 1 or min(height, width) < SMALLEST:
        raise ValueError(f"slices are (N, 1, H, W), {SMALLEST} pixels or more, not {slices.shape}")
    size = max(1, PIXELS_AT_ONCE // (height * width))
    return torch.cat([_features(part) for part in slices[:, 0].float().split(size)])


radiomic_features.window = WINDOW_HU  # whatever the images are clipped to: thresholds are in HU
radiomic_features.standardise = True  # units differ: the distance divides each by its real spread


def _features(full) -> torch.Tensor:
    """(n, H, W) -> (n, 80)."""
    span = WINDOW_HU[1] - WINDOW_HU[0]
    low, high = ((edge - WINDOW_HU[0]) / span for edge in SOFT_HU)
    soft = ((full - low) * (1 / (high - low))).clamp_(0, 1)
    columns = _histogram(full)
    for scale in SCALES:
        if scale > 1:
            full, soft = _halved(full), _halved(soft)
        columns.append(torch.log(_energy(_steps(full, 1)) + _energy(_steps(full, 2)) + FLOOR / 10))
        columns += _gradients(soft)
        if scale > 1:
            columns += _tubes(soft)
        if scale in (2, 4):
            columns += _co_occurrence(soft)
    return torch.stack(columns, 1)


def _histogram(x) -> list[torch.Tensor]:
    """Moments, quantiles and tissue shares of (n, H, W), from one histogram a slice."""
    n, device = len(x), x.device
    bins = (x.reshape(n, -1) * BINS).to(torch.int32).clamp_(0, BINS - 1)
    bins += torch.arange(n, dtype=torch.int32, device=device)[:, None] * BINS
    counts = torch.bincount(bins.flatten(), minlength=n * BINS).reshape(n, BINS)
    share = counts.double() / bins.shape[1]
    middle = (torch.arange(BINS, device=device, dtype=torch.float64) + 0.5) / BINS
    mean = share @ middle
    spread = (share @ middle.square() - mean.square()).clamp_min(0).sqrt()
    below = share.cumsum(1)
    levels = torch.tensor(QUANTILES, device=device, dtype=torch.float64).expand(n, -1).contiguous()
    at = torch.searchsorted(below, levels).clamp_max(BINS - 1)
    over = (below.gather(1, at) - levels) / share.gather(1, at).clamp_min(1e-12)
    quantiles = (at + 1 - over.clamp(0, 1)) / BINS
    span = WINDOW_HU[1] - WINDOW_HU[0]
    edges = [round((edge - WINDOW_HU[0]) / span * BINS) for edge in TISSUE_EDGES_HU]
    shares = below[:, [edge - 1 for edge in edges]].diff(dim=1, prepend=below.new_zeros(n, 1))
    columns = [mean, spread, *quantiles.unbind(1), *shares.clamp_min(0).sqrt().unbind(1)]
    return [column.float() for column in columns]


def _gradients(y) -> list[torch.Tensor]:
    """Energies, direction, tails and flatness of the gradients of (n, H, W)."""
    down, right = _steps(y, 1)[:, :, :-1], _steps(y, 2)[:, :-1]
    energy_h, energy_w = _energy(down), _energy(right)
    energy = energy_h + energy_w
    across = (down * right).mean((1, 2))
    along = (energy_h - energy_w).square() + 4 * across.square()
    squares = (down * down).addcmul_(right, right)
    fourth = _energy(squares)
    size = squares.sqrt_().mean((1, 2))
    inner = y[:, 1:-1, 1:-1]
    laplacian = y[:, :-2, 1:-1] + y[:, 2:, 1:-1]
    laplacian += y[:, 1:-1, :-2]
    laplacian += y[:, 1:-1, 2:]
    laplacian = laplacian.sub_(inner, alpha=4).abs_()
    saturating = []
    for hu in FLAT_HU:
        share = laplacian + hu / (SOFT_HU[1] - SOFT_HU[0])
        saturating.append(torch.div(laplacian, share, out=share).mean((1, 2)))
    return [
        torch.log(energy_h + FLOOR),
        torch.log(energy_w + FLOOR),
        along.sqrt() / (energy + FLOOR),
        size / (energy + FLOOR).sqrt(),
        torch.log((fourth + FLOOR**2) / (energy + FLOOR).square()),
        *saturating,
    ]


def _tubes(y) -> list[torch.Tensor]:
    """Responses of (n, H, W) to what is bright, thin and long."""
    y = _at_least(y, 5)
    centre = y[:, 1:-1, 1:-1]
    hh = y[:, :-2, 1:-1] + y[:, 2:, 1:-1] - 2 * centre
    ww = y[:, 1:-1, :-2] + y[:, 1:-1, 2:] - 2 * centre
    hw = (y[:, 2:, 2:] - y[:, 2:, :-2] - y[:, :-2, 2:] + y[:, :-2, :-2]) / 4
    mean = (hh + ww) / 2
    spread = ((hh - ww) / 2).square_().addcmul_(hw, hw).sqrt_()
    ridge, larger = (spread - mean).relu_(), mean + spread
    opened = _extreme(-_extreme(-y))  # erosion, then dilation, by 3 x 3 pixels
    tophat = (y[:, 2:-2, 2:-2] - opened).relu_()
    thin = (tophat - THIN_HU / (SOFT_HU[1] - SOFT_HU[0])).relu_()
    floor = FLOOR**0.5
    return [
        torch.log(ridge.mean((1, 2)) + floor),
        torch.log(_energy(ridge) + FLOOR) / 2,
        torch.log((-larger).relu_().mean((1, 2)) + floor),
        torch.log(larger.relu_().mean((1, 2)) + floor),
        torch.log(tophat.mean((1, 2)) + floor),
        torch.log(_energy(tophat) + FLOOR) / 2,
        torch.log(thin.mean((1, 2)) + floor),
        (thin > 0).float().mean((1, 2)).sqrt(),
    ]


def _co_occurrence(y) -> list[torch.Tensor]:
    """Uniformity, entropy, homogeneity and correlation of the grey levels of neighbours."""
    n, k = len(y), GREY_LEVELS
    grey = (y * k).to(torch.int32).clamp_(0, k - 1)
    slice_ = torch.arange(n, dtype=torch.int32, device=y.device)[:, None, None] * k * k
    pairs = [
        (grey[:, :-1] * k + grey[:, 1:] + slice_).flatten(),
        (grey[:, :, :-1] * k + grey[:, :, 1:] + slice_).flatten(),
    ]
    counts = sum(torch.bincount(p, minlength=n * k * k) for p in pairs).reshape(n, k, k)
    p = (counts + counts.transpose(1, 2)).double()
    p = p / p.sum((1, 2), keepdim=True)
    level = torch.arange(k, device=y.device, dtype=torch.float64)
    apart = (level[:, None] - level).abs()
    mean = (p.sum(2) @ level)[:, None]
    variance = (p.sum(2) * (level - mean).square()).sum(1)
    together = (p * (level - mean)[:, :, None] * (level - mean)[:, None, :]).sum((1, 2))
    columns = [
        p.square().sum((1, 2)).sqrt(),
        -torch.special.xlogy(p, p).sum((1, 2)),
        (p / (1 + apart)).sum((1, 2)),
        (together + 1e-3) / (variance + 1e-3),
    ]
    return [column.float() for column in columns]


def _steps(x, axis) -> torch.Tensor:
    size = x.shape[axis] - 1
    return x.narrow(axis, 1, size) - x.narrow(axis, 0, size)


def _energy(x) -> torch.Tensor:
    """Mean of squares of each slice: (n, H, W) -> (n,)."""
    return torch.linalg.vector_norm(x, dim=(1, 2)).square() / (x.shape[1] * x.shape[2])


def _halved(x) -> torch.Tensor:
    """Means of 2 x 2 pixels; a last odd row or column is dropped, below three pixels repeated."""
    x = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
    rows = x[:, ::2] + x[:, 1::2]
    return _at_least((rows[:, :, ::2] + rows[:, :, 1::2]).mul_(0.25), 3)


def _extreme(x) -> torch.Tensor:
    """Maximum of 3 x 3 pixels where all of them exist."""
    x = torch.maximum(torch.maximum(x[:, :-2], x[:, 1:-1]), x[:, 2:])
    return torch.maximum(torch.maximum(x[:, :, :-2], x[:, :, 1:-1]), x[:, :, 2:])


def _at_least(x, size) -> torch.Tensor:
    """The last row and column repeated until there are `size`."""
    lack = [max(0, size - n) for n in x.shape[1:]]
    if not any(lack):
        return x
    padding = (0, lack[1], 0, lack[0])
    return torch.nn.functional.pad(x[:, None], padding, mode="replicate")[:, 0]
