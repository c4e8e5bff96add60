"""Similarity of two images: PSNR, SSIM, MS-SSIM and mean absolute error, also by class.

Tensors are (B, C, X, Y, Z) or (B, C, X, Y); results are one Python float per batch element, nan
where undefined (an image smaller than the window). SSIM is that of Wang et al. 2004
(doi:10.1109/TIP.2003.819861): Gaussian window of 11 voxels, sigma 1.5 voxels, K1 = 0.01, K2 = 0.03,
population covariances, averaged over the voxels whose window lies inside the image: scikit-image's
value with gaussian_weights=True, sigma=1.5, use_sample_covariance=False. MS-SSIM is that of Wang
et al. 2003 (doi:10.1109/ACSSC.2003.1292216). Windows are in voxels, not in millimeters.
"""

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
PSNR_CAP_DB = 100.0  # identical images have no finite PSNR; JSON has no infinity
SLAB = 32  # voxels along an axis that are filtered at once: they fit into the CPU's cache


def psnr(a: Tensor, b: Tensor, data_range: float) -> list[float]:
    """Peak signal-to-noise ratio in dB, at most PSNR_CAP_DB."""
    return [_decibels(error, data_range) for error in _means((a.float() - b.float()).square())]


def mae_hu(a_hu: Tensor, b_hu: Tensor) -> list[float]:
    """Mean absolute difference, in the unit of the input."""
    return _means((a_hu.float() - b_hu.float()).abs())


def ssim(a: Tensor, b: Tensor, data_range: float) -> list[float]:
    """Structural similarity."""
    return _structure(a, b, data_range)[0]


def ms_ssim(a: Tensor, b: Tensor, data_range: float) -> list[float]:
    """Multi-scale SSIM: contrast-structure at every scale, luminance at the coarsest.

    MS-SSIM = prod_s max(term_s, 0)^w_s with SCALE_WEIGHTS w_s; term_s is the contrast-structure
    mean, at the coarsest scale the SSIM. Each scale halves the one before by averaging 2 x 2 (x 2)
    voxels (an odd last voxel is averaged alone). Five scales need more than 160 voxels along every
    axis; a smaller image gets as many of the first scales as hold the window, with their weights
    divided by their sum.
    """
    return ssim_and_ms_ssim(a, b, data_range)[1]


def ssim_and_ms_ssim(
    a: Tensor,
    b: Tensor,
    data_range: float,
    labels: Tensor | None = None,
    num_classes: int = 0,
    window: int = WINDOW,
    ceil_mode: bool = True,
) -> tuple[list[float], list[float], list[list[float]] | None]:
    """SSIM, MS-SSIM (B floats each) and SSIM by class (B x num_classes, None without labels).

    One pass: the first scale of MS-SSIM is SSIM, and its map is averaged over the classes of
    labels (B, X, Y, Z) too. window: its voxels, odd with labels; ceil_mode: False leaves an odd
    last voxel out of the next scale.
    """
    # An image smaller than the window has one scale, of nan.
    scales = max(1, num_scales(a.shape[2:], window, ceil_mode))
    weights = [w / sum(SCALE_WEIGHTS[:scales]) for w in SCALE_WEIGHTS[:scales]]
    product = [1.0] * len(a)
    pool = F.avg_pool3d if a.ndim == 5 else F.avg_pool2d
    mean_ssim, by_class = [], None
    for scale, weight in enumerate(weights):
        if scale:
            a, b = (pool(x.float(), 2, None, 0, ceil_mode, False) for x in (a, b))
            similarity, contrast, _ = _structure(a, b, data_range, window=window)
        else:
            settings = (labels, num_classes, window)
            similarity, contrast, by_class = _structure(a, b, data_range, *settings)
            mean_ssim = similarity
        terms = similarity if scale == scales - 1 else contrast
        product = [p * max(t, 0.0) ** weight for p, t in zip(product, terms, strict=True)]
    return mean_ssim, product, by_class


def num_scales(shape: Sequence[int], window: int = WINDOW, ceil_mode: bool = True) -> int:
    """Scales of MS-SSIM whose image holds the window; 0 where SSIM is undefined."""
    size, scales = min(shape), 0
    while size >= window and scales < len(SCALE_WEIGHTS):
        size, scales = (size + ceil_mode) // 2, scales + 1
    return scales


def image_scores(
    real_hu: Tensor,
    other_hu: Tensor,
    window: tuple[float, float],
    labels: Tensor | None = None,
    num_classes: int = 0,
) -> dict[str, float]:
    """The scores that `evaluate` writes for one pair of HU images (X, Y, Z) or (X, Y).

    Both are clipped to the window (low, high) in HU. PSNR, SSIM and MS-SSIM are of the clipped
    images scaled to [0, 1] with data range 1; mae_hu is in HU. With labels (the same shape), every
    class k from 1 on that occurs adds `psnr_class<k>`, `ssim_class<k>` and `mae_hu_class<k>`. An
    image thinner than the SSIM window has no SSIM.
    """
    low, high = window
    a, b = (
        (x.float().clamp(low, high) - low)[None, None] / (high - low) for x in (real_hu, other_hu)
    )
    counts, sums = torch.zeros(0), []
    if labels is None:
        scores, absolute = {"psnr": psnr(a, b, 1.0)[0]}, mae_hu(a, b)[0]
    else:  # every voxel is in one class: the sums over classes give the whole image's means too
        error = (a - b)[0, 0]
        counts, sums = _sums(labels, (error.abs(), error.square()), num_classes)
        absolute, squared = (float(s.sum() / counts.sum()) for s in sums)
        scores = {"psnr": _decibels(squared, 1.0)}
    similarity = None
    if num_scales(a.shape[2:]):
        batch_labels = None if labels is None else labels[None]
        one_scale, multi_scale, similarity = ssim_and_ms_ssim(a, b, 1.0, batch_labels, num_classes)
        scores["ssim"], scores["ms_ssim"] = one_scale[0], multi_scale[0]
    scores["mae_hu"] = absolute * (high - low)
    for k in range(1, len(counts)):
        if not counts[k]:
            continue
        scores[f"psnr_class{k}"] = _decibels(float(sums[1][k] / counts[k]), 1.0)
        if similarity is not None:
            scores[f"ssim_class{k}"] = similarity[0][k]
        scores[f"mae_hu_class{k}"] = float(sums[0][k] / counts[k]) * (high - low)
    return scores


def _structure(
    a: Tensor,
    b: Tensor,
    data_range: float,
    labels: Tensor | None = None,
    num_classes: int = 0,
    window: int = WINDOW,
) -> tuple[list[float], list[float], list[list[float]] | None]:
    """Mean SSIM and mean contrast-structure term (B floats each), and SSIM by class or None."""
    if not num_scales(a.shape[2:], window):
        undefined = [math.nan] * len(a)
        return undefined, undefined, [[math.nan] * num_classes for _ in a]
    edge, regions = window // 2, None
    total = torch.zeros(len(a), 2, dtype=torch.float64, device=a.device)
    by_class = torch.zeros(2, len(a), num_classes, dtype=torch.float64, device=a.device)
    if labels is not None:  # voxels whose window lies inside the image: 5 less at every end
        regions = labels[(slice(None), *(slice(edge, n - edge) for n in labels.shape[1:]))]
    # Slabs (B, C, at most SLAB, ...).
    for start, luminance, structure in _similarity_slabs(a, b, data_range, window):
        # Each slab's mean counts with its thickness; the sum is divided by the whole thickness.
        total[:, 1] += structure.flatten(1).mean(1, dtype=torch.float64) * structure.shape[2]
        similarity = luminance.mul_(structure)  # SSIM = luminance * contrast-structure
        total[:, 0] += similarity.flatten(1).mean(1, dtype=torch.float64) * structure.shape[2]
        if regions is not None:
            slab = regions[:, start : start + similarity.shape[2]]
            for i, (region, field) in enumerate(zip(slab, similarity.mean(1), strict=True)):
                count, (class_sum,) = _sums(region, (field,), num_classes)
                by_class[:, i] += torch.stack([class_sum, count])
    total /= a.shape[2] - window + 1
    class_means = None if labels is None else (by_class[0] / by_class[1]).tolist()
    return total[:, 0].tolist(), total[:, 1].tolist(), class_means


def _similarity_slabs(
    a: Tensor, b: Tensor, data_range: float, window: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Slab by slab along x: (first x of the valid region, luminance term, contrast-structure term).

    With the window's means mu, variances s^2 and covariance s_ab (Wang 2004, equations 6 to 13):
    luminance = (2 mu_a mu_b + C1) / (mu_a^2 + mu_b^2 + C1),
    contrast-structure = (2 s_ab + C2) / (s_a^2 + s_b^2 + C2), C1 = K1^2 and C2 = K2^2.
    Only the sum of the two variances is used, so four fields are filtered and not five.
    """
    if a.shape != b.shape:
        raise ValueError(
            f"images of different shapes: {tuple(a.shape)} and {tuple(b.shape)}; resample one"
        )
    c1, c2 = K1**2, K2**2
    for start in range(0, a.shape[2] - window + 1, SLAB):
        # In units of the data range, so that float32 differences of squares keep their digits.
        x, y = (t[:, :, start : start + SLAB + window - 1].float() / data_range for t in (a, b))
        # E[a], E[b], E[ab], E[a^2 + b^2]: (4, B, C, slab + window - 1, Y, Z) -> the valid region.
        fields = torch.stack([x, y, x * y, x.square().addcmul_(y, y)])
        for axis in range(3, fields.ndim):
            fields = _blur(fields, axis, window)
        mean_a, mean_b, mean_ab, mean_squares = fields
        product = mean_a * mean_b
        squares = mean_a.square().addcmul_(mean_b, mean_b)
        luminance = (2 * product + c1) / (squares + c1)
        # s_ab = E[ab] - E[a] E[b]; s_a^2 + s_b^2 = E[a^2 + b^2] - (E[a]^2 + E[b]^2).
        structure = (2 * (mean_ab - product) + c2) / (mean_squares - squares + c2)
        yield start, luminance, structure


def _blur(fields: Tensor, axis: int, window: int) -> Tensor:
    """Gaussian window along one axis: n -> n - window + 1 voxels, the valid region.

    A banded matrix (SLAB, SLAB + window - 1) times blocks of SLAB voxels: about twenty times faster
    on a CPU than a convolution with one channel, though most of the matrix is zeros.
    """
    out = fields.shape[axis] - window + 1
    blocks = []
    for start in range(0, out, SLAB):
        size = min(SLAB, out - start)
        block = fields.narrow(axis, start, size + window - 1)
        band = _band(size, window, str(fields.device))
        with torch.autocast(fields.device.type, enabled=False):  # 16 bits would show in the score
            if axis == fields.ndim - 1:
                blocks.append(block @ band.T)
            else:
                # (..., size + window - 1, rest) -> (..., size, rest): later axes are one.
                rows = torch.matmul(band, block.flatten(axis + 1))
                blocks.append(rows.unflatten(-1, block.shape[axis + 1 :]))
    return torch.cat(blocks, axis)


@lru_cache
def _band(size: int, window: int, device: str) -> Tensor:
    """(size, size + window - 1): row i is the normalized Gaussian from column i on."""
    offsets = torch.arange(window, dtype=torch.float64) - (window - 1) / 2
    kernel = torch.exp(-0.5 * (offsets / SIGMA) ** 2)
    rows = torch.zeros(size, size + window - 1, dtype=torch.float64)
    for i in range(size):
        rows[i, i : i + window] = kernel / kernel.sum()
    return rows.float().to(device)


def _sums(
    labels: Tensor, values: Sequence[Tensor], num_classes: int
) -> tuple[Tensor, list[Tensor]]:
    """(num_classes,) voxel counts, and for each field of values its sums by class, in float64."""
    flat = labels.reshape(-1).long()
    if len(flat) and int(flat.max()) >= num_classes:
        raise ValueError(
            f"label {int(flat.max())} in a label map of {num_classes} classes, 0 to "
            f"{num_classes - 1}; raise num_classes"
        )
    counts = torch.bincount(flat, minlength=num_classes).double()
    sums = [torch.bincount(flat, v.reshape(-1).double(), minlength=num_classes) for v in values]
    return counts, sums


def _means(values: Tensor) -> list[float]:
    """Mean over channels and voxels of each batch element, summed in float64."""
    return values.flatten(1).mean(1, dtype=torch.float64).tolist()


def _decibels(mean_squared_error: float, data_range: float) -> float:
    """10 log10(data_range^2 / MSE), at most PSNR_CAP_DB."""
    smallest = data_range**2 * 10 ** (-PSNR_CAP_DB / 10)
    return 10 * math.log10(data_range**2 / max(mean_squared_error, smallest))
