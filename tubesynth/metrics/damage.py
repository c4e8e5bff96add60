"""Can the features be trusted on this data? They must rank known damage by how bad it is.

Each real CT is blurred (Gaussian, sigma in voxels), made noisy (white noise, HU) and robbed of its
vessels (the lowest half of their voxels, then all: replaced by the fat around them), and the
damaged set is compared with the undamaged one. A feature function whose Frechet distance does not
grow from level to level for a kind of damage cannot see it, and its scores say nothing about it.
"""

import zlib

import numpy as np

from tubesynth.metrics.distribution_set import PLANES, SMALLEST_STD, slice_features
from tubesynth.metrics.features import radiomic_features
from tubesynth.metrics.frechet import Moments, frechet
from tubesynth.volume.classes import NINE_CLASSES

LEVELS = {"blur": (0.5, 1.0, 2.0), "noise": (10.0, 20.0, 40.0), "vessels_erased": (0.5, 1.0)}
UNITS = {"blur": "voxels", "noise": "HU", "vessels_erased": "share"}
FAT_HU = (-150.0, -30.0)
USUAL_FAT_HU = -90.0
SHELL_VOXELS = 3


class ValidityCheck:
    """Add real cases with their label maps one by one, then read `result()`.

    slice_step: every how manieth slice is used; at most max_cases are (nine volumes go through the
    feature function for each), the rest is passed over.
    """

    def __init__(
        self,
        feature_fn=radiomic_features,
        planes=tuple(PLANES),
        *,
        window=(-1000.0, 1000.0),
        vessel_class: int = NINE_CLASSES.vessel,
        max_cases=4,
        slice_step=4,
        device="cpu",
    ):
        self.feature_fn, self.planes, self.window = feature_fn, tuple(planes), window
        self.vessel_class, self.max_cases = vessel_class, max_cases
        self.slice_step, self.device = slice_step, device
        self.cases = 0
        self.moments: dict[tuple, dict[str, Moments]] = {}

    def add(self, case_id: str, volume_hu, labels=None) -> None:
        """volume_hu: (X, Y, Z) in HU; labels: the same grid, or None (vessels are not tested)."""
        if self.cases >= self.max_cases:
            return
        self.cases += 1
        hu = np.asarray(volume_hu, dtype=np.float32)
        mask = None if labels is None else np.asarray(labels) == self.vessel_class
        self._take(("none", 0.0), hu)
        for kind, levels in LEVELS.items():
            for level in levels:
                if kind == "vessels_erased" and (mask is None or not mask.any()):
                    # Undamaged, so that each level still compares the same cases.
                    damaged = hu
                else:
                    damaged = damage(hu, kind, level, mask, zlib.crc32(case_id.encode()))
                    self.moments.setdefault(("seen", kind), {})
                self._take((kind, level), damaged)

    def result(self) -> dict:
        """{"ok": bool | None, "cases", "damage": {kind: [{"level", "frechet"}]}, "messages"}.

        ok: None where no case was added; a kind without a case to test it is left out. Distances
        are of the same slices with and without the damage, mean over planes.
        """
        if not self.cases:
            return {"ok": None, "cases": 0, "damage": {}, "messages": ["no case was tested"]}
        found, messages, ok = {}, [], True
        for kind, levels in LEVELS.items():
            if ("seen", kind) not in self.moments:
                messages.append(f"{kind}: not tested, no case has it")
                continue
            rows = [{"level": level, "frechet": self._distance(kind, level)} for level in levels]
            found[kind] = rows
            distances = [0.0, *(row["frechet"] for row in rows)]
            if not all(a < b for a, b in zip(distances, distances[1:], strict=False)):
                ok = False
                shown = ", ".join(f"{r['frechet']:.3g} at {r['level']:g}" for r in rows)
                messages.append(
                    f"{kind}: the features do not rank it ({shown} {UNITS[kind]}); "
                    "do not read their scores as a judgement of it"
                )
        return {"ok": ok, "cases": self.cases, "damage": found, "messages": messages}

    def _take(self, key, hu) -> None:
        for plane in self.planes:
            n = hu.shape[PLANES[plane]]
            indices = range(min(self.slice_step // 2, n - 1), n, self.slice_step)
            features = slice_features(hu, plane, self.feature_fn, self.window, indices, self.device)
            kept = self.moments.setdefault(key, {})
            if plane in kept:
                kept[plane].add(features)
            else:
                kept[plane] = Moments.of(features)

    def _distance(self, kind, level) -> float:
        distances = []
        for plane in self.planes:
            whole = self.moments["none", 0.0][plane]
            scale = 1.0
            if getattr(self.feature_fn, "standardise", False):
                scale = np.maximum(np.sqrt(np.diag(whole.covariance)), SMALLEST_STD)
            distances.append(frechet(whole, self.moments[kind, level][plane], scale))
        return float(np.mean(distances))


def damage(hu, kind: str, level: float, vessels=None, seed: int = 0) -> np.ndarray:
    """A damaged copy (X, Y, Z) float32; vessels: bool mask, for vessels_erased."""
    from scipy.ndimage import gaussian_filter

    if kind == "blur":
        return gaussian_filter(hu, level, truncate=3.0)
    if kind == "noise":
        noise = np.random.default_rng([seed, 1]).standard_normal(hu.shape, dtype=np.float32)
        return hu + np.float32(level) * noise
    return erase_vessels(hu, vessels, level)


def erase_vessels(hu, vessels, share: float) -> np.ndarray:
    """The lowest `share` of the vessel voxels, with the bright rim that partial volume leaves one
    voxel around them, becomes fat of the HU found about the vessels (or USUAL_FAT_HU)."""
    from scipy.ndimage import binary_dilation

    found = np.argwhere(vessels)
    order = np.lexsort(found.T)  # by z, then y, then x
    box = tuple(
        slice(max(0, low - SHELL_VOXELS), high + SHELL_VOXELS + 1)
        for low, high in zip(found.min(0), found.max(0), strict=True)
    )
    gone = np.zeros_like(vessels)
    gone[tuple(found[order[: round(share * len(found))]].T)] = True
    out = hu.astype(np.float32, copy=True)
    inside, whole = out[box], vessels[box]
    shell = binary_dilation(whole, iterations=SHELL_VOXELS) & ~whole
    fat = inside[shell & (inside > FAT_HU[0]) & (inside < FAT_HU[1])]
    level = float(np.median(fat)) if len(fat) else USUAL_FAT_HU
    inside[binary_dilation(gone[box])] = level
    return out
