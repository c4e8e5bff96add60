"""Noise and vessels in larger voxels, interpolated with and without a low-pass filter.

    python tests/bench/antialias.py

White noise of 20 HU, and straight vessels of 400 HU in tissue of 40 HU along z, at random places
between the voxels, both in voxels of 0.35 x 0.35 x 0.5 mm. HU in voxels of other sizes.
"""

import numpy as np

from tubesynth.volume.grid import Volume, centered_affine
from tubesynth.volume.resample import resample_image, target_grid

SPACING, WINDOW = (0.35, 0.35, 0.5), (-1000.0, 1000.0)
NOISE_HU, LUMEN_HU, TISSUE_HU = 20, 400, 40
PLACES = 40


def on_grid(array: np.ndarray, size_mm: float, extent_mm: float, antialias: bool) -> np.ndarray:
    volume = Volume(array, centered_affine(array.shape, SPACING))
    grid = target_grid(volume, (size_mm,) * 3, (int(extent_mm / size_mm),) * 3)
    return resample_image(volume, *grid, TISSUE_HU, WINDOW, antialias).array


def vessel(diameter_mm: float, rng: np.random.Generator, size_mm: float) -> np.ndarray:
    """(X, Y, Z) HU, the vessel's edges softened over a voxel."""
    x = (np.arange(240) - 119.5) * SPACING[0]
    center = rng.uniform(-size_mm / 2, size_mm / 2, 2)
    radius = np.hypot(x[:, None] - center[0], x[None] - center[1])
    share = np.clip((diameter_mm / 2 - radius) / SPACING[0] + 0.5, 0, 1)
    hu = TISSUE_HU + (LUMEN_HU - TISSUE_HU) * share
    return np.repeat(hu[:, :, None], 60, 2).astype(np.float32)


def main() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(0, NOISE_HU, (240, 240, 180)).astype(np.float32)
    for size_mm in (0.7, 1.05, 2.1):
        sd = [on_grid(noise, size_mm, 60, on).std() for on in (False, True)]
        print(f"noise at {size_mm} mm: {sd[0]:.1f} HU, with antialias {sd[1]:.1f} HU")
    for diameter_mm in (2.0, 3.0, 4.0):
        for antialias in (False, True):
            slices = [
                on_grid(vessel(diameter_mm, rng, 2.1), 2.1, 30, antialias)[:, :, 7]
                for _ in range(PLACES)
            ]
            peak = np.array([hu.max() for hu in slices])
            full = (LUMEN_HU - TISSUE_HU) * np.pi * diameter_mm**2 / 4
            area = np.array([(hu - TISSUE_HU).sum() * 2.1**2 for hu in slices]) / full
            print(
                f"vessel of {diameter_mm} mm at 2.1 mm, antialias {antialias}:"
                f" peak {peak.mean():.0f} +- {peak.std():.0f} HU,"
                f" area {area.mean():.2f} +- {area.std():.2f}"
            )


if __name__ == "__main__":
    main()
