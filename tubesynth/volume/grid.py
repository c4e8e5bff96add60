"""A volume: an array in (x, y, z) RAS+ order that always travels with its affine.

The affine maps voxel indices to world millimeters (RAS+), as nibabel gives it after reorientation.
Its columns may be oblique: the spacing is the length of each column.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike

import numpy as np

from tubesynth.runtime.errors import InputError

MAX_SHEAR = 1e-4  # of axes that count as right-angled: 0.05 mm in a field of view of 500 mm
Box = tuple[slice, slice, slice]
_STORED = (np.uint8, np.uint16, np.int16, np.int32)  # types of voxels that every reader knows


@dataclass(frozen=True, repr=False, eq=False)
class Volume:
    """A 3D image or label map and its place in the world.

    array: (X, Y, Z) in RAS+ order, HU for a CT and class indices for a label map. affine: (4, 4)
    float64, voxel index -> world mm. A two-dimensional picture has the shape (X, Y, 1). Volumes
    are equal if they are the same object: compare their arrays.
    """

    array: np.ndarray
    affine: np.ndarray

    def __post_init__(self):
        array = np.asarray(self.array)
        if array.ndim != 3 or not array.size:
            raise InputError(f"a volume has three axes with voxels, not shape {array.shape}")
        affine = np.asarray(self.affine, dtype=np.float64)
        if affine.shape != (4, 4):
            raise InputError(f"an affine is 4x4, not {affine.shape}")
        if not np.isfinite(affine).all() or np.linalg.det(affine) == 0:
            raise InputError("an affine is finite, and its axes span the space")
        object.__setattr__(self, "array", array)
        object.__setattr__(self, "affine", affine)

    def __repr__(self) -> str:
        return f"Volume({grid_text(self)}, {self.array.dtype})"

    @classmethod
    def from_file(
        cls,
        path: str | PathLike,
        labels: bool = False,
        label_map: Mapping[int, int] | None = None,
    ) -> "Volume":
        """The volume in a file or a DICOM folder.

        path: .nii, .nii.gz, .nrrd, .nhdr, .mha, .mhd, .png, or a folder with one DICOM series.
        labels: read a label map, uint8 class indices; else stored integers or float32. label_map:
        the class of each stored value of a label map of another scheme (data.label_map). A file
        that is not readable is an InputError (a ValueError) that names it and the remedy.
        """
        from tubesynth.volume.files import read_labels, read_volume

        if label_map is not None and not labels:
            raise InputError("label_map is for label maps: give labels=True too")
        return read_labels(path, label_map) if labels else read_volume(path)

    def save(self, path: str | PathLike, dtype=None) -> None:
        """Write .nii, .nii.gz or .png (one slice); the file appears whole or not at all.

        dtype: NumPy type of the stored voxels; None: the array's own, or for a .png of values from
        0 the smallest that holds them, as for integers of 64 bits and bool; float16 is stored as
        float32. Floats are rounded for integer types and clipped to their
        range: int16 for HU, uint8 for class indices.
        """
        from tubesynth.volume.files import write_volume

        low, high = self.array.min(), self.array.max()
        is_picture = dtype is None and str(path).lower().endswith(".png") and low >= 0
        dtype = np.dtype(self.array.dtype if dtype is None else dtype)
        if is_picture or dtype in (bool, np.int64, np.uint64):
            ends = int(np.rint(low)), int(np.rint(high))
            dtype = next((kind for kind in _STORED if _holds(kind, ends)), np.float64)
        elif dtype == np.float16:
            dtype = np.float32
        write_volume(path, self, dtype)

    @property
    def shape(self) -> tuple[int, int, int]:
        x, y, z = self.array.shape
        return x, y, z

    @property
    def spacing(self) -> np.ndarray:
        """(3,) mm along x, y, z."""
        return spacing_of(self.affine)

    @property
    def voxel_ml(self) -> float:
        """The volume of a voxel, also of one with sheared axes."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000

    @property
    def center_mm(self) -> np.ndarray:
        """(3,) world position of the middle of the grid."""
        return self.to_world((np.array(self.shape) - 1) / 2)

    def to_world(self, index: np.ndarray) -> np.ndarray:
        """(..., 3) voxel indices -> (..., 3) world mm."""
        return np.asarray(index) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def to_index(self, world_mm: np.ndarray) -> np.ndarray:
        """(..., 3) world mm -> (..., 3) fractional voxel indices."""
        inverse = np.linalg.inv(self.affine)
        return np.asarray(world_mm) @ inverse[:3, :3].T + inverse[:3, 3]


def _holds(kind: type, values) -> bool:
    return all(np.can_cast(np.min_scalar_type(value), kind) for value in values)


def grid_text(volume: Volume) -> str:
    """Shape, spacing and the world position of voxel (0, 0, 0), for messages."""
    shape = "x".join(map(str, volume.shape))
    spacing = "x".join(f"{s:.4g}" for s in volume.spacing)
    corner = ", ".join(f"{x:.1f}" for x in volume.affine[:3, 3])
    return f"{shape} voxels of {spacing} mm from ({corner}) mm"


def spacing_of(affine: np.ndarray) -> np.ndarray:
    """(3,) mm: the lengths of the affine's columns."""
    return np.linalg.norm(np.asarray(affine, dtype=np.float64)[:3, :3], axis=0)


def shear_of(affine: np.ndarray) -> float:
    """The shear: the largest cosine between two of the affine's axes, 0 at right angles."""
    directions = np.asarray(affine, dtype=np.float64)[:3, :3] / spacing_of(affine)
    return float(np.abs(directions.T @ directions - np.eye(3)).max())


def right_angled_axes(affine: np.ndarray) -> np.ndarray:
    """(3, 3) unit columns at right angles: the affine's own, or the closest if it is sheared."""
    directions = np.asarray(affine, dtype=np.float64)[:3, :3] / spacing_of(affine)
    if shear_of(affine) <= MAX_SHEAR:
        return directions
    # U V^T of the singular value decomposition U S V^T; the qform of nibabel has the same axes
    left, _, right = np.linalg.svd(directions)
    return left @ right


def centered_affine(shape, spacing) -> np.ndarray:
    """An axis-aligned RAS+ affine (4, 4) whose grid is centered on the world's origin."""
    affine = np.diag([*spacing, 1.0]).astype(np.float64)
    affine[:3, 3] = -(np.array(shape) - 1) / 2 * np.asarray(spacing)
    return affine


def extent_in(volume: Volume, shape: Sequence[int], affine) -> tuple[np.ndarray, np.ndarray]:
    """Where a grid of the same axes, but for a shear, begins and ends: (3,) voxels of a volume."""
    # voxel of the volume = step * voxel of the grid + first, on each axis
    relative = np.linalg.inv(volume.affine) @ affine
    step, first = np.diag(relative)[:3], relative[:3, 3]
    return first - 0.5 * step, first + (np.array(shape) - 0.5) * step


def uncovered(volume: Volume, shape: Sequence[int], affine) -> tuple[float, float]:
    """(the share of a grid that lies outside of a volume, that of the volume outside of the grid),
    for a grid as in extent_in.
    """
    begin, end = extent_in(volume, shape, affine)
    shared = np.minimum(end, np.array(volume.shape) - 0.5) - np.maximum(begin, -0.5)
    shared = shared.clip(0)
    return float(1 - np.prod(shared / (end - begin))), float(1 - np.prod(shared / volume.shape))


def bounding_box(mask: np.ndarray, margin: int | np.ndarray = 0) -> Box | None:
    """The smallest box that contains a bool mask (X, Y, Z), and a margin in voxels, one number or
    (3,), as far as the array reaches; None where the mask is empty.
    """
    from scipy import ndimage

    boxes = ndimage.find_objects(np.asarray(mask, dtype=bool).view(np.uint8))
    if not boxes:
        return None
    sides = zip(boxes[0], np.broadcast_to(margin, 3).tolist(), mask.shape, strict=True)
    x, y, z = (slice(max(s.start - m, 0), min(s.stop + m, n)) for s, m, n in sides)
    return x, y, z


def same_grid(a: Volume, b: Volume, tolerance_mm: float = 0.01) -> bool:
    """Whether both have one shape and every corner voxel lies within the tolerance."""
    if a.shape != b.shape:
        return False
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in a.shape])).reshape(3, -1).T
    return bool(np.abs(a.to_world(corners) - b.to_world(corners)).max() <= tolerance_mm)
