"""How near one image is to another: PSNR, SSIM, MS-SSIM, absolute error, also by class.

Tensors are (B, C, X, Y, Z) or (B, C, X, Y); answers are one Python float per batch element, nan
where undefined (an empty mask, an image smaller than the window). SSIM is that of Wang et al. 2004
(doi:10.1109/TIP.2003.819861): Gaussian window of 11 voxels, sigma 1.5 voxels, K1 = 0.01, K2 = 0.03,
population covariances, averaged over the voxels whose window lies inside the image: scikit-image's
number with gaussian_weights=True, sigma=1.5, use_sample_covariance=False. MS-SSIM is that of Wang
et al. 2003 (doi:10.1109/ACSSC.2003.1292216). Windows count voxels, not millimetres.
"""

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F

WINDOW, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
PSNR_CAP_DB = 100.0  # identical images have no finite PSNR; JSON has no infinity
SLAB = 32  # voxels along an axis filtered at once: bounds the memory, keeps the work in cache


def psnr(a, b, data_range: float, mask=None) -> list[float]:
    """Peak signal-to-noise ratio in dB, at most PSNR_CAP_DB. mask: bool, (B, X, Y, Z)."""
    squared = _masked_means((a.float() - b.float()).square(), mask)
    return [_decibels(error, data_range) for error in squared]


def mae_hu(a_hu, b_hu, mask=None) -> list[float]:
    """Mean absolute difference, in the unit of the input (HU where both are HU)."""
    return _masked_means((a_hu.float() - b_hu.float()).abs(), mask)


def ssim(a, b, data_range: float, mask=None) -> list[float]:
    """Structural similarity; with a mask, the mean over its voxels with a whole window."""
    if mask is None:
        return _structure(a, b, data_range)[0]
    return [row[1] for row in _structure(a, b, data_range, mask, 2)[2]]


def ms_ssim(a, b, data_range: float) -> list[float]:
    """Multi-scale SSIM: contrast-structure at every scale, luminance at the coarsest.

    Scales are halved by averaging 2 x 2 (x 2) voxels (a last odd voxel stands for itself). Weights
    are SCALE_WEIGHTS. Five scales need more than 160 voxels along every axis; a smaller image gets
    as many of the first scales as fit the window, their weights divided by their sum. Negative
    terms count as 0.
    """
    return ssim_and_ms_ssim(a, b, data_range)[1]


def ssim_and_ms_ssim(a, b, data_range: float, labels=None, num_classes: int = 0):
    """SSIM, MS-SSIM (B floats each) and SSIM by class (B x num_classes, or None) at one price.

    The first scale of MS-SSIM is SSIM's, and its map is what is averaged over the classes.
    """
    scales = max(1, num_scales(a.shape[2:]))  # where none fits, the first one is nan
    weights = [w / sum(SCALE_WEIGHTS[:scales]) for w in SCALE_WEIGHTS[:scales]]
    product = [1.0] * len(a)
    pool = F.avg_pool3d if a.ndim == 5 else F.avg_pool2d
    first = by_class = None
    for scale, weight in enumerate(weights):
        if scale:
            a, b = (pool(x.float(), 2, ceil_mode=True, count_include_pad=False) for x in (a, b))
        maps = (labels, num_classes) if scale == 0 else (None, 0)
        similarity, contrast, inside = _structure(a, b, data_range, *maps)
        if scale == 0:
            first, by_class = similarity, inside
        terms = similarity if scale == scales - 1 else contrast
        product = [p * max(t, 0.0) ** weight for p, t in zip(product, terms, strict=True)]
    return first, product, by_class


def num_scales(shape: Sequence[int]) -> int:
    """Scales of MS-SSIM whose image still holds the window; 0 where SSIM is undefined."""
    size, scales = min(shape), 0
    while size >= WINDOW and scales < len(SCALE_WEIGHTS):
        size, scales = -(-size // 2), scales + 1
    return scales


def image_scores(real_hu, other_hu, window, labels=None, num_classes: int = 0) -> dict[str, float]:
    """The scores that `evaluate` writes for one pair of HU images (X, Y, Z) or (X, Y).

    Both are clipped to the window (low, high) in HU. PSNR, SSIM and MS-SSIM are of the clipped
    images scaled to [0, 1] with data range 1; mae_hu is in HU. With labels (the same shape), every
    class from 1 on that occurs adds `psnr_class1`, `ssim_class1`, `mae_hu_class1`, ... An image
    thinner than the SSIM window has no SSIM.
    """
    low, high = window
    a, b = (
        (x.float().clamp(low, high) - low)[None, None] / (high - low) for x in (real_hu, other_hu)
    )
    classes, similarity = None if labels is None else labels[None], None
    if classes is None:
        scores, absolute = {"psnr": psnr(a, b, 1.0)[0]}, mae_hu(a, b)[0]
    else:  # what is in the classes is all there is
        error = (a - b)[0, 0]
        counts, sums = _sums(labels, (error.abs(), error.square()), num_classes)
        absolute, squared = (float(s.sum() / counts.sum()) for s in sums)
        scores = {"psnr": _decibels(squared, 1.0)}
    if num_scales(a.shape[2:]):
        first, multi, similarity = ssim_and_ms_ssim(a, b, 1.0, classes, num_classes)
        scores["ssim"], scores["ms_ssim"] = first[0], multi[0]
    scores["mae_hu"] = absolute * (high - low)
    for k in range(1, num_classes if classes is not None else 0):
        if not counts[k]:
            continue
        scores[f"psnr_class{k}"] = _decibels(float(sums[1][k] / counts[k]), 1.0)
        if similarity is not None:
            scores[f"ssim_class{k}"] = similarity[0][k]
        scores[f"mae_hu_class{k}"] = float(sums[0][k] / counts[k]) * (high - low)
    return scores


def _structure(a, b, data_range, labels=None, num_classes=0):
    """Mean SSIM and mean contrast-structure term (B floats each), and SSIM by class or None."""
    if not num_scales(a.shape[2:]):
        undefined = [math.nan] * len(a)
        return undefined, undefined, [[math.nan] * num_classes for _ in a]
    edge, regions = WINDOW // 2, None
    total = torch.zeros(len(a), 2, dtype=torch.float64, device=a.device)
    by_class = torch.zeros(2, len(a), num_classes, dtype=torch.float64, device=a.device)
    if labels is not None:  # of the voxels whose window lies inside the image
        regions = labels[(slice(None), *(slice(edge, n - edge) for n in labels.shape[1:]))]
    for start, luminance, structure in _similarity_slabs(a, b, data_range):
        total[:, 1] += structure.flatten(1).mean(1, dtype=torch.float64) * structure.shape[2]
        similarity = luminance.mul_(structure)
        total[:, 0] += similarity.flatten(1).mean(1, dtype=torch.float64) * structure.shape[2]
        if regions is not None:
            here = regions[:, start : start + similarity.shape[2]]
            for i, (region, field) in enumerate(zip(here, similarity.mean(1), strict=True)):
                count, (inside,) = _sums(region, (field,), num_classes)
                by_class[:, i] += torch.stack([inside, count])
    total /= a.shape[2] - 2 * edge
    inside = None if labels is None else (by_class[0] / by_class[1]).tolist()
    return total[:, 0].tolist(), total[:, 1].tolist(), inside


def _similarity_slabs(a, b, data_range) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Slab by slab along x: (first x of the valid region, luminance term, contrast-structure term).

    Four fields are filtered, not five, since only the sum of the two variances enters the formula.
    """
    if a.shape != b.shape:
        raise ValueError(f"images of different shapes: {tuple(a.shape)} and {tuple(b.shape)}")
    c1, c2 = K1**2, K2**2
    for start in range(0, a.shape[2] - WINDOW + 1, SLAB):
        # In units of the data range, so that float32 differences of squares keep their digits.
        x, y = (t[:, :, start : start + SLAB + WINDOW - 1].float() / data_range for t in (a, b))
        fields = torch.stack([x, y, x * y, x.square().addcmul_(y, y)])
        for axis in range(3, fields.ndim):
            fields = _blur(fields, axis)
        mean_x, mean_y, product, squares = fields
        means = mean_x * mean_y
        mean_squares = mean_x.square().addcmul_(mean_y, mean_y)
        luminance = (2 * means + c1) / (mean_squares + c1)
        structure = (2 * (product - means) + c2) / (squares - mean_squares + c2)
        yield start, luminance, structure


def _blur(fields, axis) -> torch.Tensor:
    """Gaussian window along one axis, valid region.

    A banded matrix times blocks of SLAB voxels: about twenty times faster on a CPU than a
    convolution with one channel, though most of the matrix is zeros.
    """
    out = fields.shape[axis] - WINDOW + 1
    blocks = []
    for start in range(0, out, SLAB):
        size = min(SLAB, out - start)
        part = fields.narrow(axis, start, size + WINDOW - 1)
        band = _band(size, str(fields.device))
        with torch.autocast(fields.device.type, enabled=False):  # 16 bits would show in the score
            if axis == fields.ndim - 1:
                blocks.append(part @ band.T)
            else:
                rows = torch.matmul(band, part.flatten(axis + 1))
                blocks.append(rows.unflatten(-1, part.shape[axis + 1 :]))
    return torch.cat(blocks, axis)


@lru_cache
def _band(size, device) -> torch.Tensor:
    """(size, size + 10): row i holds the normalised Gaussian in columns i to i + 10."""
    offsets = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    kernel = torch.exp(-0.5 * (offsets / SIGMA) ** 2)
    rows = torch.zeros(size, size + WINDOW - 1, dtype=torch.float64)
    for i in range(size):
        rows[i, i : i + WINDOW] = kernel / kernel.sum()
    return rows.float().to(device)


def _sums(labels, values, num_classes) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Voxels of each class, and for each field of values its sum over the class, in float64."""
    flat = labels.reshape(-1).long()
    if len(flat) and int(flat.max()) >= num_classes:
        raise ValueError(f"label {int(flat.max())} in a map of {num_classes} classes")
    counts = torch.bincount(flat, minlength=num_classes).double()
    sums = [torch.bincount(flat, v.reshape(-1).double(), minlength=num_classes) for v in values]
    return counts, sums


def _masked_means(values, mask) -> list[float]:
    """Mean over channels and voxels (of the mask) of each batch element, summed in float64."""
    if mask is None:
        return values.flatten(1).mean(1, dtype=torch.float64).tolist()
    return [
        v[:, m.bool()].mean(dtype=torch.float64).item() for v, m in zip(values, mask, strict=True)
    ]


def _decibels(mean_squared_error: float, data_range: float) -> float:
    if math.isnan(mean_squared_error):
        return math.nan
    floor = data_range**2 * 10 ** (-PSNR_CAP_DB / 10)
    return 10 * math.log10(data_range**2 / max(mean_squared_error, floor))
