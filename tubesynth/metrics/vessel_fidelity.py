"""Fidelity of a reconstruction near the vessels: error and contrast, by calibre.

Voxels within MARGIN_MM of the vessel mask (at least one voxel) count; each has the calibre of the
centreline point nearest to it. Contrast is that of vessel.centreline_scores: HU of a centreline
point minus the median of its shell; vessel_contrast_kept is its mean over the cases'
reconstructions divided by its mean over their real CTs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tubesynth.metrics.dilation import Spacing, within
from tubesynth.metrics.image import mae_hu, psnr
from tubesynth.metrics.vessel import calibres, centreline_scores
from tubesynth.volume.grid import Volume, centered_affine
from tubesynth.volume.polyline import point_tree
from tubesynth.volume.vessels import VesselTokens, extract_tokens

MARGIN_MM = 1.5
MIN_CONTRAST_HU = 20.0  # of the real CTs; the ratio to a smaller one would be noise
REAL, RECONSTRUCTED = "contrast_hu_real", "contrast_hu_reconstructed"


@dataclass(frozen=True)
class VesselSurroundings:
    """The voxels near one case's vessels, computed once for all its reconstructions."""

    tokens: VesselTokens
    affine: np.ndarray  # (4, 4) of the grid, its center at 0
    index: np.ndarray  # (V,) flat indices of the voxels near a vessel
    radius_mm: np.ndarray  # (V,) of the nearest centreline point

    @classmethod
    def of(cls, vessels: np.ndarray, spacing: Spacing) -> "VesselSurroundings | None":
        """vessels: (X, Y, Z) bool; spacing: (3,) mm; None where the mask has no centreline."""
        spacing = np.asarray(spacing, dtype=np.float64)
        affine = centered_affine(vessels.shape, tuple(spacing))
        tokens = extract_tokens(vessels, affine)
        if len(tokens) == 0:
            return None
        near = within(vessels, spacing, max(MARGIN_MM, spacing.max()))
        center = (np.array(vessels.shape) - 1) / 2
        position = (np.argwhere(near) - center) * spacing  # (V, 3) mm, as the tokens' positions
        _, nearest = point_tree(tokens.position_mm).query(position)
        return cls(tokens, affine, np.flatnonzero(near), tokens.radius_mm[nearest])


def vessel_fidelity(
    real_hu: np.ndarray,
    reconstructed_hu: np.ndarray,
    surroundings: VesselSurroundings,
    window_hu: float,
) -> dict[str, float]:
    """One case's row: vessel_psnr (data range window_hu), vessel_mae_hu, and the two contrasts.

    real_hu, reconstructed_hu: (X, Y, Z) float. Each also by calibre, as a suffix, where it occurs.
    """
    row = {}
    images = real_hu, reconstructed_hu
    values = [torch.from_numpy(image.ravel()[surroundings.index]) for image in images]  # (V,) each
    for suffix, selected in calibres(surroundings.radius_mm).items():
        a, b = (hu[torch.from_numpy(selected)][None, None] for hu in values)  # (1, 1, N)
        row[f"vessel_psnr{suffix}"] = psnr(a, b, window_hu)[0]
        row[f"vessel_mae_hu{suffix}"] = mae_hu(a, b)[0]
    for name, image in zip((REAL, RECONSTRUCTED), images, strict=True):
        grid = Volume(image, surroundings.affine)
        for key, value in centreline_scores(grid, surroundings.tokens, grid).items():
            if key.startswith("contrast_hu"):
                row[name + key.removeprefix("contrast_hu")] = value
    return row


def mean_fidelity(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Rows of vessel_fidelity -> means over the cases that have a value, and vessel_contrast_kept.

    A score that no case has, and the ratio to a contrast below MIN_CONTRAST_HU, have no key.
    """
    names = {name for row in rows for name in row}
    means = {}
    for name in sorted(names):
        values = [row[name] for row in rows if np.isfinite(row.get(name, np.nan))]
        if values:
            means[name] = float(np.mean(values))
    scores = {k: v for k, v in means.items() if not k.startswith((REAL, RECONSTRUCTED))}
    for name in means:
        suffix = name.removeprefix(REAL)
        contrast = means.get(RECONSTRUCTED + suffix)
        if name.startswith(REAL) and means[name] >= MIN_CONTRAST_HU and contrast is not None:
            scores[f"vessel_contrast_kept{suffix}"] = contrast / means[name]
    return scores
