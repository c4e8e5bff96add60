"""Features of one CT for the distribution scores: of its slices in three planes, and a thumbnail.

A set of CTs is a list of VolumeFeatures; several samples of one label map have one case id. 640
slices take 0.2 MB with 80 features and 5 MB with the 2048 of a published network.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from tubesynth.metrics.features import RADIOMIC, SMALLEST, FeatureFunction
from tubesynth.metrics.frechet import gaussian
from tubesynth.runtime.errors import InputError
from tubesynth.volume.intensity import hu_to_unit

PLANES = {"axial": 2, "coronal": 1, "sagittal": 0}  # the axis across the plane
SLICES_AT_ONCE = 32
SAMPLED_SLICES, SAMPLED_CASES = 16, 256
SMALLEST_STD = 1e-2  # a feature that hardly varies among real slices is not amplified
THUMBNAIL, THUMBNAIL_HU = (24, 24, 24), (-200.0, 500.0)  # from air to contrast agent

Volumes = Sequence["VolumeFeatures"]
SlicesByPlane = Mapping[str, Mapping[str, np.ndarray]]  # {plane: {case id: (N, D)}}


@dataclass(frozen=True)
class VolumeFeatures:
    """slices: {plane: (N, D)}; thumbnail: (24, 24, 24) in [0, 1], (24, 24, 1) of a 2D image."""

    case: str
    sample: int
    spacing: tuple[float, ...]
    slices: dict[str, np.ndarray]
    thumbnail: np.ndarray

    def sampled(self) -> "VolumeFeatures":
        """The same with at most SAMPLED_SLICES slices of each plane, evenly spread."""
        rows = {p: x[spread_indices(len(x), SAMPLED_SLICES)] for p, x in self.slices.items()}
        return replace(self, slices=rows)


def volume_features(
    case: str,
    volume_hu: np.ndarray,
    spacing: Sequence[float] | np.ndarray,
    sample: int = 0,
    *,
    feature_fn: FeatureFunction = RADIOMIC,
    planes: Sequence[str] | None = None,
    window: tuple[float, float] = (-1000.0, 1000.0),
    sampled_only: bool = False,
    device: str = "cpu",
) -> VolumeFeatures:
    """Features of one CT (X, Y, Z) in HU of spacing (3,) mm; a 2D image has Z = 1.

    planes: by default all whose slices have at least SMALLEST along each axis. sampled_only:
    sixteen slices per plane, enough for memorization but not for a Frechet distance.
    """
    slices = {}
    for plane in planes or planes_of(volume_hu.shape):
        n = volume_hu.shape[PLANES[plane]]
        indices = spread_indices(n, SAMPLED_SLICES if sampled_only else n)
        slices[plane] = slice_features(volume_hu, plane, feature_fn, window, indices, device)
        if not np.isfinite(slices[plane]).all():
            raise InputError(f"case {case}: nan or infinity in its voxels or features")
    unit = torch.from_numpy(hu_to_unit(np.array(volume_hu, dtype=np.float32), THUMBNAIL_HU))
    x, y, z = (min(n, size) for n, size in zip(THUMBNAIL, unit.shape, strict=True))
    thumbnail = torch.nn.functional.adaptive_avg_pool3d(unit[None], (x, y, z))[0].numpy()
    return VolumeFeatures(case, sample, tuple(map(float, spacing)), slices, thumbnail)


def slice_features(
    volume_hu: np.ndarray,
    plane: str,
    feature_fn: FeatureFunction,
    window: tuple[float, float],
    indices: Sequence[int] | np.ndarray,
    device: str = "cpu",
) -> np.ndarray:
    """(len(indices), D) float32 features of the slices of one plane of a volume (X, Y, Z) in HU.

    Slices are clipped to `window` and scaled to [0, 1] by the feature function's window, or by
    `window` where it has none.
    """
    stack = np.moveaxis(np.asarray(volume_hu), PLANES[plane], 0)
    features = []
    for start in range(0, len(indices), SLICES_AT_ONCE):
        chunk = stack[np.asarray(indices)[start : start + SLICES_AT_ONCE]]
        hu = torch.from_numpy(np.array(chunk, dtype=np.float32, order="C")).to(device)
        unit = hu_to_unit(hu.clamp_(*map(float, window)), feature_fn.window or window)
        with torch.no_grad():
            features.append(feature_fn(unit[:, None]).float().cpu().numpy())
    return np.concatenate(features)


def slices_by_case(volumes: Volumes, plane: str) -> dict[str, np.ndarray]:
    """{case id: (N, D)}, sorted: the slices of a plane of all samples of each case."""
    samples: dict[str, list[np.ndarray]] = {}
    for volume in sorted(volumes, key=lambda v: (v.case, v.sample)):
        samples.setdefault(volume.case, []).append(volume.slices[plane])
    return {case: np.concatenate(slices) for case, slices in samples.items()}


def sampled_slices(volumes: Volumes) -> SlicesByPlane:
    """{plane: {case id: (N, D)}}: sampled slices of at most SAMPLED_CASES cases.

    The cases are those with the smallest checksum of their id: a fixed random choice.
    """
    order = sorted({v.case for v in volumes}, key=lambda case: (zlib.crc32(case.encode()), case))
    chosen = set(order[:SAMPLED_CASES])
    sampled = [volume.sampled() for volume in volumes if volume.case in chosen]
    return {plane: slices_by_case(sampled, plane) for plane in volumes[0].slices}


def feature_scale(slices: Sequence[np.ndarray], standardize: bool) -> np.ndarray | float:
    """(D,) divisor of the features: their standard deviation over real slices (N_i, D), or 1."""
    return np.maximum(np.sqrt(np.diag(gaussian(slices)[1])), SMALLEST_STD) if standardize else 1.0


def planes_of(shape: Sequence[int]) -> list[str]:
    """The planes whose slices have enough pixels for features; axial alone for a 2D image."""
    return [
        p for p, a in PLANES.items() if min(n for i, n in enumerate(shape) if i != a) >= SMALLEST
    ]


def spread_indices(n: int, limit: int) -> np.ndarray:
    """At most `limit` indices below n, in order: the middles of equal intervals."""
    return np.arange(n) if n <= limit else ((np.arange(limit) + 0.5) * n / limit).astype(int)


def check_comparable(volumes: Volumes) -> None:
    """InputError for CTs of different planes, features or spacing: features are in pixels."""
    first = volumes[0]
    lengths = {plane: x.shape[1] for plane, x in first.slices.items()}
    for v in volumes:
        if {plane: x.shape[1] for plane, x in v.slices.items()} != lengths:
            raise InputError(f"case {v.case}: other planes or features than case {first.case}")
        if not np.allclose(v.spacing, first.spacing, rtol=0.01):
            texts = [" x ".join(f"{x:.3g}" for x in s) for s in (v.spacing, first.spacing)]
            raise InputError(
                f"case {v.case}: spacing {texts[0]} mm, but {texts[1]} mm in case {first.case}; "
                "resample all CTs to one spacing"
            )
