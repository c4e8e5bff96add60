"""Vessel tokens as the data sets and the cache take them: traced in a label map's own voxels, laid
on the model's grid, by name; and the same tokens drawn as fields on the grid of the latents.
"""

from functools import partial

import numpy as np

from tubesynth.data.volumes import TokenSource
from tubesynth.volume.grid import Volume
from tubesynth.volume.rasterize import vessel_fields
from tubesynth.volume.vessels import VesselTokens, extract_tokens, place_tokens

FORMAT = 2  # raise it when the same label map would give other tokens
FIELD_REACH_CELLS = 3.0  # further from a vessel's wall is as good as none


def vessel_token_source(vessel_class: int, step_mm: float) -> TokenSource:
    """Tokens of one class, at most step_mm apart along the vessel."""
    settings = {"vessel_class": vessel_class, "step_mm": float(step_mm)}
    return TokenSource(partial(_extract, **settings), {**settings, "format": FORMAT})


def _extract(label: Volume, shape, affine, vessel_class: int, step_mm: float) -> dict:
    """A label map -> the arrays of VesselTokens by name, each (N, ...), on the grid asked for."""
    tokens = extract_tokens(label.array == vessel_class, label.affine, step_mm)
    return dict(vars(place_tokens(tokens, label, shape, affine)))


def latent_fields(tokens: VesselTokens, shape, spacing, factor: int) -> np.ndarray:
    """(2, x, y, z) float32 for latents of a volume of shape (3,) voxels and spacing (3,) mm:
    closeness to the nearest vessel, and its radius in cells (the geometric mean of a cell's sides).

    Closeness is 1 on the vessel's wall, more inside it, and falls to 0 within FIELD_REACH_CELLS, so
    that both fields are 0 wherever no vessel is near. An axis of one voxel, as pictures have it,
    stays one.
    """
    step = np.where(np.asarray(shape) > 1, factor, 1)
    sides_mm = np.asarray(spacing) * step
    cell_mm = float(np.prod(sides_mm[step > 1]) ** (1 / max(1, (step > 1).sum())))
    grid = tuple(int(n) for n in np.asarray(shape) // step)
    reach_mm = FIELD_REACH_CELLS * cell_mm
    distance, radius = vessel_fields(tokens, grid, sides_mm, reach_mm)
    return np.stack([1 - distance / reach_mm, radius / cell_mm])
