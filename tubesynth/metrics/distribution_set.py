"""What the distribution scores keep of a set of CTs, one volume in memory at a time.

Slices of three planes go through a feature function `features(slices (N, 1, H, W) in [0, 1]) ->
(N, D)`. Kept are moments per case (frechet.py), sixteen slices a plane of a bounded number of cases
(manifold.py), and a thumbnail and mean features of each volume (memorisation.py). The order of
adding cases changes nothing.
"""

import zlib

import numpy as np
import torch

from tubesynth.metrics.features import radiomic_features
from tubesynth.metrics.frechet import Moments, merge
from tubesynth.metrics.memorisation import thumbnail
from tubesynth.runtime.errors import InputError
from tubesynth.volume.intensity import hu_to_unit

PLANES = {"axial": 2, "coronal": 1, "sagittal": 0}  # the axis that a slice is cut across
SLICES_AT_ONCE = 32  # 64 bytes of int16: whole cache lines, also along the last axis
SAMPLED_SLICES, SAMPLED_CASES = 16, 256
MOMENTS_MIB = 128  # above that (or with long features) cases share moments
MIN_GROUPS = 8
SMALLEST_STD = 1e-2  # a feature that hardly varies among real slices is not blown up
MIN_PIXELS = 8


class DistributionSet:
    """What the scores need of one set of volumes.

    feature_fn: attribute `standardise` = True where features have different units; the distance
    then divides each by its spread over the real slices. sampled_only: skip all but sixteen slices
    a plane (enough for `training`, the memorisation check; no Frechet distance of such a set).
    """

    def __init__(
        self,
        feature_fn=radiomic_features,
        planes=tuple(PLANES),
        *,
        window=(-1000.0, 1000.0),
        sampled_only=False,
        device="cpu",
    ):
        self.feature_fn, self.planes, self.window = feature_fn, tuple(planes), window
        self.sampled_only, self.device = sampled_only, device
        self.cases: set[str] = set()
        self.spacing = None
        self.moments: dict[str, dict[str, Moments]] = {plane: {} for plane in self.planes}
        self.slices: dict[str, dict[str, np.ndarray]] = {plane: {} for plane in self.planes}
        self.thumbnails: dict[tuple[str, int], np.ndarray] = {}
        self.mean_features: dict[tuple[str, int], np.ndarray] = {}
        self.groups = None  # their number, once cases share moments

    def add(self, case_id: str, volume_hu, spacing, sample: int = 0) -> None:
        """Take in one volume (X, Y, Z) in HU of spacing (3,) mm; a 2D image has Z = 1."""
        self._check(case_id, volume_hu, spacing)
        means, self.cases = [], self.cases | {case_id}
        for plane in self.planes:
            n = volume_hu.shape[PLANES[plane]]
            chosen = spread_indices(n, SAMPLED_SLICES)
            features = slice_features(
                volume_hu,
                plane,
                self.feature_fn,
                self.window,
                chosen if self.sampled_only else range(n),
                self.device,
            )
            if not np.isfinite(features).all():
                raise InputError(f"case {case_id}: not a number among its features or voxels")
            if not self.sampled_only:
                self._accumulate(plane, case_id, features)
                features = features[chosen]
            means.append(features.mean(0, dtype=np.float64))
            kept = self.slices[plane]
            earlier = [kept[case_id]] if case_id in kept else []
            kept[case_id] = np.concatenate([*earlier, features.astype(np.float32)])
            if len(kept) > SAMPLED_CASES:  # the same cases whatever the order
                del kept[max(kept, key=sampling_order)]
        self.thumbnails[case_id, sample] = thumbnail(volume_hu)
        self.mean_features[case_id, sample] = np.concatenate(means).astype(np.float32)

    def scale(self, plane: str) -> np.ndarray | float:
        """(D,) what features are divided by where this set is the real one."""
        if not getattr(self.feature_fn, "standardise", False):
            return 1.0
        moments = merge([self.moments[plane][case] for case in sorted(self.moments[plane])])
        return np.maximum(np.sqrt(np.diag(moments.covariance)), SMALLEST_STD)

    def _accumulate(self, plane, case_id, features) -> None:
        kept, key = self.moments[plane], case_id
        if self.groups is not None:
            key = _group(case_id, self.groups)
        if key in kept:
            kept[key].add(features)
        else:
            kept[key] = Moments.of(features)
        if self.groups is None:
            size = 8 * features.shape[1] ** 2 * len(self.planes) / 2**20
            most = max(MIN_GROUPS, int(MOMENTS_MIB / size))
            if len(kept) > most:
                self.groups = most
                for name, cases in self.moments.items():
                    self.moments[name] = grouped(cases, most)

    def _check(self, case_id, volume_hu, spacing) -> None:
        spacing = np.asarray(spacing, dtype=float)
        if self.spacing is None:
            self.spacing = spacing
        if not np.allclose(spacing, self.spacing, rtol=0.01):
            raise InputError(f"case {case_id}: {_apart(spacing, self.spacing)}")
        for plane in self.planes:
            sides = [n for axis, n in enumerate(volume_hu.shape) if axis != PLANES[plane]]
            if min(sides) < MIN_PIXELS:
                raise InputError(
                    f"case {case_id}: {plane} slices of {sides[0]} x {sides[1]} pixels; "
                    f"features need {MIN_PIXELS}: leave that plane out"
                )


def slice_features(volume_hu, plane, feature_fn, window, indices, device="cpu") -> np.ndarray:
    """(len(indices), D) features of the slices of one plane of a volume (X, Y, Z) in HU.

    The slices are clipped to `window`, which is also what becomes [0, 1], unless the feature
    function's attribute `window` says which HU it takes for 0 and 1.
    """
    scale = getattr(feature_fn, "window", window)
    stack = np.moveaxis(np.asarray(volume_hu), PLANES[plane], 0)
    indices, parts = list(indices), []
    for start in range(0, len(indices), SLICES_AT_ONCE):
        part = indices[start : start + SLICES_AT_ONCE]
        run = part == list(range(part[0], part[0] + len(part)))
        chunk = stack[part[0] : part[-1] + 1] if run else stack[part]
        chunk = np.array(chunk, dtype=np.float32, order="C")
        with torch.no_grad():
            hu = torch.from_numpy(chunk).to(device).clamp_(*map(float, window))
            unit = hu_to_unit(hu, scale)
            parts.append(feature_fn(unit[:, None]).double().cpu().numpy())
    return np.concatenate(parts)


def spread_indices(n: int, most: int) -> np.ndarray:
    """At most `most` indices below n, evenly spread, in order."""
    if n <= most:
        return np.arange(n)
    return ((np.arange(most) + 0.5) * n / most).astype(int)


def sampling_order(case_id: str) -> tuple[int, str]:
    """Cases in an order by chance, always the same: the first SAMPLED_CASES keep their slices."""
    return _digest(case_id), case_id


def check_comparable(real, other) -> None:
    """Refuse sets that were made with other features, planes or spacing."""
    if real.planes != other.planes or real.feature_fn is not other.feature_fn:
        raise InputError("both sets need the same feature function and planes")
    if not np.allclose(real.spacing, other.spacing, rtol=0.01):
        raise InputError(f"real and other volumes: {_apart(other.spacing, real.spacing)}")


def _digest(case_id: str) -> int:
    return zlib.crc32(case_id.encode())


def _group(case_id: str, groups: int) -> str:
    return f"group {_digest(case_id) % groups}"


def grouped(cases, groups) -> dict[str, Moments]:
    by_group: dict[str, list[Moments]] = {}
    for case in sorted(cases):
        by_group.setdefault(_group(case, groups), []).append(cases[case])
    return {group: merge(parts) for group, parts in by_group.items()}


def _apart(spacing, expected) -> str:
    given, wanted = (" x ".join(f"{x:.3g}" for x in s) for s in (spacing, expected))
    return f"spacing {given} mm, not {wanted} mm as the others; resample to one grid"
