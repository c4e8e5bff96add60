"""What a reconstruction keeps of the vessels: error and contrast in and around them, by calibre.

Voxels within MARGIN_MM of the vessel mask (at least one voxel) count; each has the calibre of the
centreline point nearest to it. Contrast is that of vessel.centreline_scores: HU of a centreline
point less the median of its surroundings; `kept` is its mean over the cases' reconstructions
divided by its mean over their real CTs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tubesynth.metrics.dilation import within
from tubesynth.metrics.image import mae_hu, psnr
from tubesynth.metrics.vessel import calibres, centreline_scores
from tubesynth.volume.grid import Volume, centered_affine
from tubesynth.volume.vessels import VesselTokens, extract_tokens

MARGIN_MM = 1.5
LEAST_CONTRAST_HU = 20.0  # of the real CTs; of less, a share would be one of noise
REAL, MADE = "contrast_hu_real", "contrast_hu_made"


@dataclass(frozen=True)
class VesselSurroundings:
    """Where one case's vessels are, worked out once for all reconstructions of it."""

    tokens: VesselTokens
    affine: np.ndarray  # (4, 4) of the grid, its middle at 0
    index: np.ndarray  # (V,) flat indices of the voxels near a vessel
    radius_mm: np.ndarray  # (V,) of the nearest centreline point

    @classmethod
    def of(cls, vessels: np.ndarray, spacing) -> "VesselSurroundings | None":
        """Of a mask (X, Y, Z) bool with spacing (3,) mm; None where it has no centreline."""
        from scipy.spatial import cKDTree

        spacing = np.asarray(spacing, dtype=np.float64)
        affine = centered_affine(vessels.shape, tuple(spacing))
        tokens = extract_tokens(vessels, affine)
        if len(tokens) == 0:
            return None
        near = within(vessels, spacing, max(MARGIN_MM, spacing.max()))
        middle = (np.array(vessels.shape) - 1) / 2
        position = (np.argwhere(near) - middle) * spacing
        _, nearest = cKDTree(tokens.position_mm).query(position)
        return cls(tokens, affine, np.flatnonzero(near), tokens.radius_mm[nearest])


def vessel_fidelity(
    real_hu: np.ndarray, made_hu: np.ndarray, around: VesselSurroundings, window_hu: float
) -> dict[str, float]:
    """One case's row: vessel_psnr (data range window_hu), vessel_mae_hu, and the two contrasts.

    real_hu, made_hu: (X, Y, Z) float. Each again by calibre, as a suffix, where it occurs.
    """
    row = {}
    real, made = (torch.from_numpy(x.ravel()[around.index]) for x in (real_hu, made_hu))
    everything = np.ones(len(real), dtype=bool)
    for suffix, chosen in {"": everything, **calibres(around.radius_mm)}.items():
        if chosen.any():
            a, b = (x[torch.from_numpy(chosen)][None, None] for x in (real, made))
            row[f"vessel_psnr{suffix}"] = psnr(a, b, window_hu)[0]
            row[f"vessel_mae_hu{suffix}"] = mae_hu(a, b)[0]
    for name, image in ((REAL, real_hu), (MADE, made_hu)):
        grid = Volume(image, around.affine)
        for key, value in centreline_scores(grid, around.tokens, grid).items():
            if key.startswith("contrast_hu"):
                row[name + key.removeprefix("contrast_hu")] = value
    return row


def mean_fidelity(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Rows of vessel_fidelity -> means over the cases that have a value, and contrast_kept.

    What no case has, and a share of a contrast below LEAST_CONTRAST_HU, has no key.
    """
    names = {name for row in rows for name in row}
    means = {}
    for name in sorted(names):
        values = [row[name] for row in rows if np.isfinite(row.get(name, np.nan))]
        if values:
            means[name] = float(np.mean(values))
    scores = {k: v for k, v in means.items() if not k.startswith((REAL, MADE))}
    for name in means:
        suffix = name.removeprefix(REAL)
        if name.startswith(REAL) and means[name] >= LEAST_CONTRAST_HU and MADE + suffix in means:
            scores[f"vessel_contrast_kept{suffix}"] = means[MADE + suffix] / means[name]
    return scores
