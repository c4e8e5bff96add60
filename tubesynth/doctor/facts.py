"""The measurements of one case that doctor's rules judge.

A process holds one case at a time and returns its `Facts`, which are small and picklable. Large
volumes are measured slice by slice, so that an image of 512 x 512 x 275 needs little more than its
own bytes. Arrays are (X, Y, Z) in RAS+ order.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tubesynth.data.preprocessing import Preprocessing
from tubesynth.runtime.errors import InputError
from tubesynth.runtime.log import collected_lines
from tubesynth.volume.cases import Case
from tubesynth.volume.classes import NINE_CLASSES, LabelScheme, count_classes
from tubesynth.volume.files import (
    as_classes,
    check_dimensions,
    check_same_grid,
    file_suffix,
    read_label_values,
    read_volume,
)
from tubesynth.volume.grid import Volume, bounding_box, extent_in, uncovered
from tubesynth.volume.hounsfield import HuFinding, judge, vessel_contrast
from tubesynth.volume.nifti import stored_affine
from tubesynth.volume.resample import resample_labels

SAMPLED_VOXELS = 2_000_000  # for percentiles and centers
AIR_HU = -1024


@dataclass(frozen=True)
class Expected:
    """The grid, window and classes of the config, or the defaults without one."""

    preprocessing: Preprocessing = Preprocessing((256, 256, 128), (0.7, 0.7, 1.05))
    labels: LabelScheme = NINE_CLASSES
    label_map: Mapping[int, int] | None = None  # data.label_map, also that of the cases
    for_training: bool = False  # the config is that of a training run
    label_remedy: str | None = None  # what to do where there are no label maps; None: not needed

    @property
    def owner(self) -> str:
        """Whose grid it is."""
        return "the model's" if self.for_training else "the published configs'"

    def includes(self, values: Iterable[int]) -> bool:
        """Whether all label values are classes; otherwise the map is of another scheme."""
        return all(value < self.labels.num_classes for value in values)


@dataclass
class Facts:
    """One case. A field keeps its default where there is no label map or no readable file."""

    case: str
    split: str  # training, validation or ''
    image: str
    label: str | None = None
    image_error: str | None = None
    label_error: str | None = None
    grid_error: str | None = None
    read_warnings: list[str] = field(default_factory=list)  # of the readers of both files

    shape: tuple[int, int, int] = (0, 0, 0)
    spacing: tuple[float, ...] = ()  # mm
    axes: str = ""  # of a NIfTI as stored, such as LPS

    digest: str = ""
    hu: dict[str, float] = field(default_factory=dict)  # min, p0.1, p1, p50, p99, p99.9, max
    not_hu: HuFinding | None = None  # what the image holds instead of HU
    below_air: float = 0.0  # share of voxels under -1024

    stored_ml: dict[int, float] = field(default_factory=dict)  # of each stored value
    label_digest: str = ""
    voxels: dict[int, int] = field(default_factory=dict)  # of each class in the map
    volumes_ml: dict[int, float] = field(default_factory=dict)
    centers_mm: dict[int, list[float]] = field(default_factory=dict)  # RAS world
    contrast: tuple[float, float] | None = None  # median HU in the vessel class, and around it
    pieces_ml: list[float] = field(default_factory=list)  # of the vessel class, largest first

    padded: float = 0.0  # share of the model's field of view outside of the image
    cropped: float = 0.0  # share of the image outside of the model's field of view
    lost: float = 0.0  # share of the foreground outside of the model's field of view
    lost_vessel: float = 0.0  # share of the vessel class outside of the model's field of view
    grid_pieces: int = 0  # connected pieces of the vessel class on the model's grid


def measure(case: Case, split: str, expected: Expected) -> Facts:
    """Read and measure a case; the message of a file that cannot be read becomes a fact."""
    label = None if case.label is None else str(case.label)
    facts = Facts(case.id, split, str(case.image), label)
    image = labels = None
    with collected_lines() as lines:
        try:
            image = read_volume(case.image)
            check_dimensions(image, expected.preprocessing.dim, case.image)
        except InputError as error:
            image, facts.image_error = None, str(error)
        if case.label is not None:
            try:
                values = read_label_values(case.label)
                facts.stored_ml = _volumes_ml(values, count_classes(values.array))
                labels = as_classes(values, case.label_map, case.label)
            except InputError as error:
                facts.label_error = str(error)
    facts.read_warnings = [line.getMessage() for line in lines]
    if image is not None:
        _measure_grid(facts, image, case.image)
        _measure_hu(facts, image, expected.preprocessing.hu_window)
    if labels is not None:
        _measure_labels(facts, labels, expected)
    if image is not None and labels is not None:
        try:
            check_same_grid(image, labels, case.image, case.label)
        except InputError as error:
            facts.grid_error = str(error)
            labels = None
    if image is not None:
        _measure_view(facts, image, labels, expected)
    if image is not None and labels is not None:
        vessel = labels.array == expected.labels.vessel
        facts.contrast = vessel_contrast(image.array, vessel)
    return facts


def content_digest(array: np.ndarray) -> str:
    """SHA-256 of a volume's numbers, the same for int16 and float32 and for any packing."""
    digest = hashlib.sha256(repr(array.shape).encode())
    for z in range(array.shape[2]):
        digest.update(array[:, :, z].astype(np.float32).tobytes(order="F"))
    return digest.hexdigest()


def pieces(mask: np.ndarray) -> list[int]:
    """Voxels of each connected piece (26 neighbors), largest first."""
    from scipy import ndimage

    box = bounding_box(mask)
    if box is None:
        return []
    numbers = np.empty(mask[box].shape, dtype=np.int32)
    ndimage.label(mask[box], np.ones((3, 3, 3)), output=numbers)
    return sorted(np.bincount(numbers.ravel())[1:].tolist(), reverse=True)


def _volumes_ml(labels: Volume, voxels: dict[int, int]) -> dict[int, float]:
    """The volumes of the values of a label map, without the background."""
    return {value: count * labels.voxel_ml for value, count in voxels.items() if value}


def _measure_grid(facts: Facts, image: Volume, path: Path) -> None:
    facts.shape, facts.spacing = image.shape, tuple(image.spacing.tolist())
    if file_suffix(path) in (".nii", ".nii.gz"):
        import nibabel as nib

        facts.axes = "".join(nib.aff2axcodes(stored_affine(path)))


def _measure_hu(facts: Facts, image: Volume, window: tuple[float, float]) -> None:
    array = image.array
    facts.digest = content_digest(array)
    low, high = array.min(), array.max()
    sample = array.ravel(order="K")[:: 1 + array.size // SAMPLED_VOXELS].astype(np.float64)
    levels = (0.1, 1, 50, 99, 99.9)
    percentiles = np.percentile(sample, levels).tolist()
    named = {f"p{level:g}": value for level, value in zip(levels, percentiles, strict=True)}
    facts.hu = {"min": float(low), **named, "max": float(high)}
    facts.not_hu = judge(array, window)
    if low < AIR_HU:
        below = sum(int((array[:, :, z] < AIR_HU).sum()) for z in range(array.shape[2]))
        facts.below_air = below / array.size


def _measure_labels(facts: Facts, labels: Volume, expected: Expected) -> None:
    array = labels.array
    facts.voxels = count_classes(array)
    facts.volumes_ml = _volumes_ml(labels, facts.voxels)
    if facts.volumes_ml:  # maps of background alone are equal without being copies
        facts.label_digest = content_digest(array)
    if facts.voxels.get(expected.labels.vessel):
        sizes = pieces(array == expected.labels.vessel)
        facts.pieces_ml = [n * labels.voxel_ml for n in sizes]
    step = max(1, int(np.ceil((array.size / SAMPLED_VOXELS) ** (1 / 3))))
    coarse = array[::step, ::step, ::step]
    for value in facts.volumes_ml:
        index = np.argwhere(coarse == value)
        if len(index):
            facts.centers_mm[value] = labels.to_world(index.mean(axis=0) * step).tolist()


def _measure_view(facts: Facts, image: Volume, labels: Volume | None, expected: Expected) -> None:
    """How the image's grid and the model's overlap; the axes are the same, but for a shear."""
    shape, affine = expected.preprocessing.grid(image)
    begin, end = extent_in(image, shape, affine)
    facts.padded, facts.cropped = uncovered(image, shape, affine)
    if labels is None:
        return
    low = np.ceil(begin - 1e-6).astype(int).clip(0)
    high = np.floor(end + 1e-6).astype(int).clip(-1) + 1
    # Labeled voxels that lie wholly within the field of view.
    visible = count_classes(labels.array[tuple(map(slice, low, high))])
    total = sum(n for value, n in facts.voxels.items() if value)
    if total:
        facts.lost = 1 - sum(n for value, n in visible.items() if value) / total
    if vessel := facts.voxels.get(expected.labels.vessel):
        facts.lost_vessel = 1 - visible.get(expected.labels.vessel, 0) / vessel
        on_grid = resample_labels(labels, shape, affine).array == expected.labels.vessel
        facts.grid_pieces = len(pieces(on_grid))
