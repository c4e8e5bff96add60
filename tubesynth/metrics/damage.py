"""The validity check of a feature function: its Frechet distance must rank known damage of CTs.

Real CTs are blurred (Gaussian, sigma in voxels), get noise (white, HU), and their vessels are
replaced by the surrounding fat (the lowest half of the voxels, then all). The damaged set is
compared with the intact one. Where the distance does not grow from level to level, the features
do not measure that kind of damage, and their scores say nothing about it.
"""

import zlib
from collections.abc import Iterable

import numpy as np

from tubesynth.metrics.features import RADIOMIC, FeatureFunction
from tubesynth.metrics.frechet import frechet_distance, gaussian
from tubesynth.metrics.volume_features import PLANES, feature_scale, planes_of, slice_features
from tubesynth.volume.classes import NINE_CLASSES
from tubesynth.volume.grid import bounding_box

LEVELS = {"blur": (0.5, 1.0, 2.0), "noise": (10.0, 20.0, 40.0), "vessels_erased": (0.5, 1.0)}
UNITS = {"blur": "voxels", "noise": "HU", "vessels_erased": "share"}
FAT_HU, DEFAULT_FAT_HU = (-150.0, -30.0), -90.0
SHELL_VOXELS = 3


def validity_check(
    cases: Iterable[tuple[str, np.ndarray, np.ndarray | None]],
    feature_fn: FeatureFunction = RADIOMIC,
    *,
    window: tuple[float, float] = (-1000.0, 1000.0),
    vessel_class: int = NINE_CLASSES.vessel,
    slice_step: int = 4,
    device: str = "cpu",
) -> dict:
    """{"ok": bool | None, "cases", "damage": {kind: [{"level", "frechet"}]}, "messages"}.

    cases: case id, CT (X, Y, Z) in HU, label map on the same grid or None (vessels are not tested).
    ok is None without cases; a kind of damage that no case can test has no key. Distances are means
    over planes, between every slice_step-th slice with and without the damage.
    """
    n, tested = 0, set()
    features: dict[tuple, list[np.ndarray]] = {}  # (kind, level, plane) -> (slices, D) of each case
    for case, volume_hu, labels in cases:
        n += 1
        hu = np.asarray(volume_hu, dtype=np.float32)
        mask = np.zeros(hu.shape, bool) if labels is None else np.asarray(labels) == vessel_class
        versions = [("intact", 0.0), *((kind, level) for kind in LEVELS for level in LEVELS[kind])]
        for kind, level in versions:
            damaged = hu  # also where there are no vessels, so that all levels have the same cases
            if kind in LEVELS and (kind != "vessels_erased" or mask.any()):
                damaged = damage(hu, kind, level, mask, zlib.crc32(case.encode()))
                tested.add(kind)
            for plane in planes_of(hu.shape):
                depth = hu.shape[PLANES[plane]]
                indices = np.arange(min(slice_step // 2, depth - 1), depth, slice_step)
                rows = slice_features(damaged, plane, feature_fn, window, indices, device)
                features.setdefault((kind, level, plane), []).append(rows)
    if not n:
        return {"ok": None, "cases": 0, "damage": {}, "messages": ["no case was tested"]}

    def distance(kind: str, level: float) -> float:
        distances = []
        for plane in (p for k, _, p in features if k == "intact"):
            intact = features["intact", 0.0, plane]
            scale = feature_scale(intact, feature_fn.standardize)
            damaged = features[kind, level, plane]
            distances.append(frechet_distance(gaussian(intact, scale), gaussian(damaged, scale)))
        return float(np.mean(distances))

    rows_of, messages, ok = {}, [], True
    for kind, levels in LEVELS.items():
        if kind not in tested:
            messages.append(f"{kind}: not tested, no case has it")
            continue
        rows_of[kind] = [{"level": level, "frechet": distance(kind, level)} for level in levels]
        if (np.diff([0.0, *(row["frechet"] for row in rows_of[kind])]) <= 0).any():
            ok = False
            text = ", ".join(f"{row['frechet']:.3g} at {row['level']:g}" for row in rows_of[kind])
            messages.append(
                f"{kind}: the features do not rank it ({text} {UNITS[kind]}); "
                f"their scores do not measure {kind}"
            )
    return {"ok": ok, "cases": n, "damage": rows_of, "messages": messages}


def damage(hu: np.ndarray, kind: str, level: float, vessels: np.ndarray, seed=0) -> np.ndarray:
    """A damaged copy (X, Y, Z) float32; vessels: bool mask."""
    from scipy.ndimage import gaussian_filter

    if kind == "blur":
        return gaussian_filter(hu, level, truncate=3.0)
    if kind == "noise":
        noise = np.random.default_rng([seed, 1]).standard_normal(hu.shape, dtype=np.float32)
        return hu + np.float32(level) * noise
    return erase_vessels(hu, vessels, level)


def erase_vessels(hu: np.ndarray, vessels: np.ndarray, share: float) -> np.ndarray:
    """The CT with the lowest `share` of the vessel voxels replaced by fat, and with them the bright
    rim of one voxel that partial volume makes."""
    from scipy.ndimage import binary_dilation

    voxels, box = np.argwhere(vessels), bounding_box(vessels, SHELL_VOXELS)  # (N, 3)
    assert box is not None, "no vessels to erase"
    order = np.lexsort(voxels.T)  # by z, then y, then x
    x, y, z = voxels[order[: round(share * len(voxels))]].T
    erased = np.zeros_like(vessels)
    erased[x, y, z] = True
    result = hu.astype(np.float32, copy=True)
    region = result[box]  # a view
    # fat: the median of fatty voxels within SHELL_VOXELS of the vessels
    shell = binary_dilation(vessels[box], iterations=SHELL_VOXELS) & ~vessels[box]
    fat = region[shell & (region > FAT_HU[0]) & (region < FAT_HU[1])]
    rim = np.asarray(binary_dilation(erased[box]), dtype=bool)
    region[rim] = np.median(fat) if len(fat) else DEFAULT_FAT_HU
    return result
