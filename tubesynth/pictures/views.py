"""The views of a panel: three planes through the widest coronary, and a thin slab's projection.

Arrays are (X, Y, Z) in RAS+ order. Radiological display: the patient's right is on the left,
anterior (axial) or superior is up, the sagittal plane looks to the left.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tubesynth.metrics.dilation import within
from tubesynth.volume.grid import bounding_box

SLAB_MM = 12.5  # a thicker slab hides the coronaries behind chambers and bones
ORGAN_HU = 100.0  # highest of other organs in the projection: that of muscle, below contrast
MARGIN_MM = 2.0  # around the organs, whose blurred edge is as bright as a coronary
WIDTH_MM = 2.0  # standard deviation of the Gaussian that finds the widest coronary
NAMES = "sagittal", "coronal", "axial"


@dataclass(frozen=True)
class View:
    """The planes first to last across an axis, of which the maximum is displayed."""

    axis: int
    first: int
    last: int

    @property
    def is_slab(self) -> bool:
        return self.first < self.last

    @property
    def letter(self) -> str:
        """The side of the patient at the left edge: R (right) or A (anterior)."""
        return "A" if self.axis == 0 else "R"

    def caption(self, shape: Sequence[int], spacing: np.ndarray) -> str:
        """For example "axial, z 33 of 72"; MIP: maximum intensity projection."""
        letter, count = "xyz"[self.axis], shape[self.axis]
        if not self.is_slab:
            return f"{NAMES[self.axis]}, {letter} {self.first + 1} of {count}"
        thick_mm = (self.last - self.first + 1) * spacing[self.axis]
        return (
            f"{NAMES[self.axis]} MIP, {thick_mm:.3g} mm,"
            f" {letter} {self.first + 1} to {self.last + 1} of {count}"
        )

    def slab(self, array: np.ndarray) -> np.ndarray:
        """(X, Y, Z) -> its planes, with all three axes."""
        index = [slice(None)] * 3
        index[self.axis] = slice(self.first, self.last + 1)
        return array[tuple(index)]

    def project(self, slab: np.ndarray) -> np.ndarray:
        """A slab's maximum as (rows, columns) of the display; nan where all its planes are.

        x and y grow to the patient's right and anterior, which the display has on the left; z, and
        y of the axial plane, grow upwards. Both axes are therefore reversed in all three planes.
        """
        return np.fmax.reduce(slab, axis=self.axis)[::-1, ::-1].T

    def labels(self, label: np.ndarray, vessel_class: int) -> np.ndarray:
        """(rows, columns) class indices; of a slab the vessels only, where it has some."""
        slab = self.slab(label)
        vessels = slab == vessel_class
        return self.project(np.where(vessels, slab, 0) if self.is_slab and vessels.any() else slab)

    def size(self, shape: Sequence[int], spacing: np.ndarray, scale: float) -> tuple[int, int]:
        """(width, height) in pixels; scale: pixels per mm."""
        width, height = (
            max(1, round(float(shape[i] * spacing[i] * scale))) for i in range(3) if i != self.axis
        )
        return width, height

    def pixels(self, position_mm: np.ndarray, size: tuple[int, int], scale: float) -> np.ndarray:
        """(N, 3) mm relative to the volume's middle -> (N, 2) pixels from the tile's corner."""
        return np.array(size) / 2 - np.delete(position_mm, self.axis, axis=1) * scale

    def shows(self, position_mm: np.ndarray, shape: Sequence[int], spacing: np.ndarray):
        """(N,) bool: points in the slab, or at most MARGIN_MM from the plane."""
        step = spacing[self.axis]
        depth = position_mm[:, self.axis] / step + (shape[self.axis] - 1) / 2
        margin = 0.5 if self.is_slab else max(0.5, MARGIN_MM / step)
        return (depth >= self.first - margin) & (depth <= self.last + margin)


def choose_views(
    shape: Sequence[int], spacing: np.ndarray, label: np.ndarray | None, vessel_class: int
) -> list[View]:
    """Axial, coronal and sagittal plane, and a slab that is projected; one view of a slice (Z = 1).

    The planes pass through the widest vessel, else through the middle of the labels or of the
    volume. The slab, SLAB_MM thick, lies along the axis and at the place where it has the most
    vessels to see; without vessels it lies about the axial plane.
    """
    vessels = np.zeros(shape, dtype=bool) if label is None else label == vessel_class
    box = bounding_box(vessels)
    if box is not None:
        point = widest_point(vessels[box], spacing) + [s.start for s in box]
    else:
        organs = None if label is None else bounding_box(label > 0)
        sides = [(0, n) for n in shape] if organs is None else [(s.start, s.stop) for s in organs]
        point = [(low + high - 1) // 2 for low, high in sides]
    planes = [View(axis, int(point[axis]), int(point[axis])) for axis in (2, 1, 0)]
    if shape[2] == 1:
        return planes[:1]
    thick = [min(n, max(2, round(SLAB_MM / s))) for n, s in zip(shape, spacing, strict=True)]
    first, axis = min(max(int(point[2]) - thick[2] // 2, 0), shape[2] - thick[2]), 2
    if box is not None:
        # the axial slab comes first: of two equal ones it is the usual view
        areas = {a: visible_area(vessels, a, thick[a], spacing) for a in (2, 1, 0)}
        axis = max(areas, key=lambda a: areas[a].max())
        first = int(areas[axis].argmax())
    return [*planes, View(axis, first, first + thick[axis] - 1)]


def widest_point(mask: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """(3,) the voxel of a mask that has most of the mask around it."""
    from scipy.ndimage import gaussian_filter

    density = gaussian_filter(mask.astype(np.float32), WIDTH_MM / spacing, mode="constant")
    return np.array(np.unravel_index(np.where(mask, density, -1).argmax(), mask.shape))


def visible_area(mask: np.ndarray, axis: int, thick: int, spacing: np.ndarray) -> np.ndarray:
    """(n - thick + 1,) mm^2 of a mask in the projection of each slab along an axis."""
    # voxels of the mask below each plane; between two planes there are some where it grows
    below = np.cumsum(np.moveaxis(mask, axis, 0), axis=0, dtype=np.int16)
    below = np.concatenate([np.zeros_like(below[:1]), below])
    counts = (below[thick:] > below[:-thick]).sum((1, 2))
    return counts * np.delete(spacing, axis).prod()


def other_organs(label: np.ndarray, vessel_class: int, spacing: np.ndarray) -> np.ndarray:
    """bool (X, Y, Z): all organs but the vessels, and MARGIN_MM around them but not at a vessel."""
    vessels = label == vessel_class
    organs = (label > 0) & ~vessels
    return organs | (within(organs, spacing, MARGIN_MM) & ~within(vessels, spacing, spacing.max()))
