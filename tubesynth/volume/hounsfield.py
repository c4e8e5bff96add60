"""Whether an image holds Hounsfield units (HU), judged by its histogram, and its vessels' contrast.

The CT numbers of a patient have fixed places: air -1000, lung -900 to -500, fat -100, water 0,
muscle 50, contrast medium 200 to 600 HU, bone above. What is stored in another way (without its
rescale intercept, scaled, as gray values, as multiples) or is no CT has its values elsewhere.
Padding below air, metal, and fields of view without air or without contrast medium are ordinary.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tubesynth.runtime.errors import InputError
from tubesynth.runtime.log import warn_once
from tubesynth.volume.files import check_dimensions, read_volume
from tubesynth.volume.grid import Volume, bounding_box

DEFAULT_WINDOW = (-1000.0, 1000.0)
HU_WINDOW_LOW = -100.0  # a window that ends above it is not one of HU: pictures of 0 to 255
SAMPLED_VOXELS = 500_000
BELOW_AIR = -1100.0
SEVERAL = 50  # different values in a sample; with fewer it is a drawing, not a scan
MIN_CONTRAST_HU = 40.0  # of filled vessels against their surroundings, thin vessels included
INTERCEPTS = 2048, 1024  # HU + 2048 has air where HU + 1024 has tissue


@dataclass(frozen=True)
class HuFinding:
    """What an image holds instead of HU, and the remedy; certain, or only likely."""

    text: str
    is_certain: bool = True


def read_ct(path: Path, dim: int, window: tuple[float, float] | None) -> Volume:
    """The CT in a file or a DICOM folder: read_volume, check_dimensions and check_hu."""
    volume = read_volume(path)
    check_dimensions(volume, dim, path)
    check_hu(volume, path, window)
    return volume


def check_hu(image: Volume, path: Path | str, window: tuple[float, float] | None) -> None:
    """InputError for an image that certainly does not hold HU, a warning where it is likely.

    path: of its file, or a name for the message.
    """
    finding = judge(image.array, window)
    if finding is None:
        return
    if finding.is_certain:
        raise InputError(f"{path}: {finding.text}")
    warn_once(f"{path}: {finding.text}")


def judge(array: np.ndarray, window: tuple[float, float] | None = None) -> HuFinding | None:
    """What an image (X, Y, Z) holds instead of HU; None for a CT.

    window: the model's, which may begin above air; None where it is not known yet.
    """
    low_end, high_end = DEFAULT_WINDOW if window is None else window
    values = np.sort(sampled(array))
    if values[0] == values[-1] and array.min() == array.max():
        return HuFinding(f"every voxel is {values[0]:g}; remove the case")
    if low_end >= HU_WINDOW_LOW:
        return _without_contrast(values, low_end, high_end)
    histogram = Histogram(values)
    rules = (_label_map, _scaled, _offset, _not_negative, _multiples, _subtracted_twice)
    for finding in (rule(histogram) for rule in rules):
        if finding is not None:
            return finding
    return (
        _without_contrast(values, low_end, high_end)
        or _clipped(histogram, low_end, is_window_known=window is not None)
        or _fractions(histogram)
        or _without_tissue(histogram)
    )


def vessel_contrast(array: np.ndarray, vessel: np.ndarray) -> tuple[float, float] | None:
    """Median HU in a vessel mask (X, Y, Z) and in the shell of two voxels around it, or None."""
    from scipy import ndimage

    box = bounding_box(vessel, 2)
    if box is None:
        return None
    hu, mask = array[box], vessel[box]
    shell = ndimage.binary_dilation(mask, np.ones((3, 3, 3)), iterations=2) & ~mask
    return (float(np.median(hu[mask])), float(np.median(hu[shell]))) if shell.any() else None


def low_contrast(contrast: tuple[float, float] | None) -> str | None:
    """What a vessel_contrast says that no filled vessel has; None where one may have it."""
    if contrast is None or contrast[0] - contrast[1] >= MIN_CONTRAST_HU:
        return None
    return (
        f"{contrast[0]:.0f} HU in its vessels and {contrast[1]:.0f} HU around them: a scan without"
        " contrast agent or of too large voxels, or the label map of another image"
    )


def sampled(array: np.ndarray) -> np.ndarray:
    """(N,) float64: every n-th voxel along all axes, so that N is at most about SAMPLED_VOXELS."""
    step = max(1, int(np.ceil((array.size / SAMPLED_VOXELS) ** (1 / 3))))
    return array[::step, ::step, ::step].ravel().astype(np.float64)


class Histogram:
    """Sorted values (N,) without padding: values below air that are frequent or far from others."""

    def __init__(self, values: np.ndarray):
        lowest, highest = values[0], values[-1]
        self.range_text = f"values {lowest:.4g} to {highest:.4g}, median {np.median(values):.4g}"
        num_values = len(values)
        while len(values) and values[0] < BELOW_AIR:
            rest = values[np.searchsorted(values, values[0], "right") :]
            is_frequent = len(values) - len(rest) >= 0.01 * num_values
            if len(rest) and rest[0] - values[0] < 100 and not is_frequent:
                break
            values = rest
        self.has_padding = len(values) < 0.99 * num_values
        self.values = values if len(values) else np.zeros(1)

    def percentile(self, level: float) -> float:
        return float(np.percentile(self.values, level))

    def share(self, low: float, high: float = np.inf) -> float:
        """The share of values in [low, high)."""
        first, last = np.searchsorted(self.values, (low, high))
        return float(last - first) / len(self.values)

    def num_different(self) -> int:
        return 1 + int((np.diff(self.values) > 0).sum())

    def finding(self, text: str, is_certain: bool = True) -> HuFinding:
        return HuFinding(f"{self.range_text}: {text}", is_certain)


def _label_map(h: Histogram) -> HuFinding | None:
    values = h.values
    if values[0] == 0 and values[-1] <= 255 and h.share(0, 1) > 0.01 and (values % 1 == 0).all():
        if (count := h.num_different()) < SEVERAL:
            return HuFinding(
                f"{h.range_text}, {count} different ones: a label map, or 8-bit gray; give a CT in"
                " HU"
            )
    return None


def _scaled(h: Histogram) -> HuFinding | None:
    if h.percentile(99.9) - h.percentile(0.1) <= 20:
        return h.finding("scaled to a small range or standardized, not HU; store HU")
    return None


def _offset(h: Histogram) -> HuFinding | None:
    if h.share(-np.inf, -100) >= (0.03 if h.has_padding else 1e-3):  # edges of padding are blurred
        return None
    for intercept in INTERCEPTS:
        # fat to muscle, and fat to contrast medium, moved, against all that is not air or lung
        body, tissue = h.share(intercept - 674), h.share(intercept - 144, intercept + 156)
        soft = h.share(intercept - 144, intercept + 626)
        if tissue >= 0.05 and (tissue >= 0.4 * body or soft >= 0.85 * body):
            return h.finding(f"not HU, the rescale intercept is missing; subtract {intercept}")
    return None


def _not_negative(h: Histogram) -> HuFinding | None:
    """Gray values, MR: magnitudes from 0 on."""
    bottom, top = h.percentile(1), h.percentile(99)
    if h.share(-np.inf, 0) >= 1e-3:  # air or fat: noise alone makes more values below 0
        return None
    if bottom < 40 and 110 < h.values[-1] <= 255:
        return h.finding(
            "gray values of 8 bits, as of pictures or MR, not HU; give a CT in HU, or train with"
            " data.hu_window of their range"
        )
    if top - bottom < 150:  # maybe a single tissue, whose histogram has no landmarks
        return None
    if h.share(20_000) >= 0.05:
        return h.finding("an overflow, air is above bone; store HU as signed numbers")
    if h.percentile(50) > 500 or bottom < 0.05 * top:
        return h.finding(
            "nothing below 0 and no tissue where HU have it: MR or another modality, or raw"
            " numbers; give a CT in HU"
        )
    if top < 600:  # a small field of view within the heart
        return None
    return h.finding("neither air nor fat; check that it is a CT in HU", is_certain=False)


def _multiples(h: Histogram) -> HuFinding | None:
    above_padding = h.values[np.searchsorted(h.values, BELOW_AIR) :]
    low, high = np.percentile(above_padding, (10, 95)) if len(above_padding) else (0, 0)
    if h.share(-np.inf, -4000) >= 0.03 or high - low > 3000:
        return h.finding("too wide a range for HU, as of multiples of HU (10 x); store HU")
    return None


def _fractions(h: Histogram) -> HuFinding | None:
    """Several tissues, around 0, within a range that a single one has."""
    if not 60 < h.percentile(99) - h.percentile(1) < 160 or h.share(-15, 15) < 0.3:
        return None
    return h.finding(
        "too narrow a range for HU, as of HU / 10; check that it is a CT in HU", is_certain=False
    )


def _subtracted_twice(h: Histogram) -> HuFinding | None:
    is_light = h.percentile(99) < -300
    if not is_light and h.share(-250, 250) >= 0.03:
        return None
    if h.share(-np.inf, -1080) >= 0.05:  # fat and lung, moved
        return h.finding(
            "tissue is as light as air, as if the rescale intercept was subtracted twice; add 1024"
        )
    if is_light:
        return h.finding("air alone; check that it is the right file", is_certain=False)
    return None


def _without_contrast(values: np.ndarray, low: float, high: float) -> HuFinding | None:
    first, last = np.percentile(values, (0.1, 99.9)).clip(low, high)
    if last - first >= 0.02 * (high - low):
        return None
    return HuFinding(
        f"values {values[0]:.4g} to {values[-1]:.4g} leave no contrast in data.hu_window [{low:g},"
        f" {high:g}]; store HU, or train with another window"
    )


def _clipped(h: Histogram, low_end: float, is_window_known: bool) -> HuFinding | None:
    """Many voxels of exactly the lowest value, which is far above air."""
    low, high = h.values[0], h.values[-1]
    share = h.share(low, np.nextafter(low, np.inf))
    if not max(low_end, -900) < low or share < 0.01 or h.num_different() < SEVERAL:
        return None
    return h.finding(
        f"clipped, {100 * share:.0f} % of voxels are {low:g}; export it again"
        f" without a window, or train with data.hu_window within [{low:g}, {high:g}]",
        is_certain=is_window_known and share >= 0.05,
    )


def _without_tissue(h: Histogram) -> HuFinding | None:
    if h.share(-250, 250) >= 0.01 or h.share(-250, 600) >= 0.5:  # or inside the heart
        return None
    return h.finding(
        "hardly a voxel has the HU of fat, water or muscle; check that it is a CT in HU",
        is_certain=False,
    )
