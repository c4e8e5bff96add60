"""Vessel tokens as the data sets and the cache take them: extracted from a label map, by name."""

from functools import partial

import numpy as np

from tubesynth.data.volumes import TokenSource

FORMAT = 1  # raise it when the same label map would give other tokens


def vessel_token_source(vessel_class: int, step_mm: float) -> TokenSource:
    """Tokens of one class, at most step_mm apart along the vessel."""
    settings = {"vessel_class": vessel_class, "step_mm": float(step_mm)}
    return TokenSource(partial(_extract, **settings), {**settings, "format": FORMAT})


def _extract(labels: np.ndarray, affine: np.ndarray, vessel_class: int, step_mm: float) -> dict:
    """Labels (X, Y, Z) -> the arrays of VesselTokens by name, each (N, ...)."""
    from tubesynth.volume.vessels import extract_tokens

    return dict(vars(extract_tokens(np.asarray(labels) == vessel_class, affine, step_mm)))
