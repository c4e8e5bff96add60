"""A CT and its label map on the grid of a model: the same voxels for training and inference.

The grid has the CT's axes and center, the spacing (mm) and resolution (voxels) of the config; a
spacing may also be drawn for each case, or follow from the extent of the CT. Image voxels are int16
HU, clipped to the model's window; label voxels are uint8 classes. This file needs no torch, so that
processes that fill the cache start fast.
"""

from dataclasses import asdict, dataclass, replace
from functools import cached_property

import numpy as np

from tubesynth.volume.cases import Case
from tubesynth.volume.classes import NINE_CLASSES
from tubesynth.volume.files import check_labels, check_same_grid, read_labels
from tubesynth.volume.grid import Volume
from tubesynth.volume.hounsfield import read_ct


@dataclass(frozen=True)
class SpacingRange:
    """Spacings (mm) between two, of which each case has `num_spacings`."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    num_spacings: int
    seed: int

    def of_case(self, case_id: str, index: int) -> tuple[float, ...]:
        """A case's spacing number `index`, uniform between low and high, to 0.0001 mm."""
        share = np.random.default_rng([self.seed, index, *case_id.encode()]).random()
        ends = zip(self.low, self.high, strict=True)
        return tuple(round(low + share * (high - low), 4) for low, high in ends)

    @property
    def middle(self) -> tuple[float, ...]:
        return tuple((low + high) / 2 for low, high in zip(self.low, self.high, strict=True))


@dataclass(frozen=True)
class Preprocessing:
    """The grid, the HU window that images are clipped to, and the number of classes.

    antialias: a low-pass filter before voxels become larger, see resample_image.
    resolution and spacing (mm) have two or three entries; two describe one slice with the thickness
    of the file. spacing None: the grid has the extent of the image, so each image its own spacing;
    a range: see with_spacing.
    """

    resolution: tuple[int, ...]
    spacing: tuple[float, ...] | SpacingRange | None
    hu_window: tuple[float, float] = (-1000.0, 1000.0)
    num_classes: int = NINE_CLASSES.num_classes
    antialias: bool = False

    def __post_init__(self):
        # Equal values need equal types, since they are hashed: 256 and 256.0 give one cache key.
        set_field = object.__setattr__
        flat_axes = (1,) * (3 - len(self.resolution))
        set_field(self, "resolution", (*(int(n) for n in self.resolution), *flat_axes))
        if self.spacing is not None and not isinstance(self.spacing, SpacingRange):
            set_field(self, "spacing", tuple(float(s) for s in self.spacing))
        set_field(self, "hu_window", tuple(float(v) for v in self.hu_window))

    @cached_property
    def settings(self) -> dict:
        """All of it as plain values, for keys and metadata."""
        return asdict(self)

    @property
    def dim(self) -> int:
        """2 for one slice, else 3."""
        return 2 if self.resolution[2] == 1 else 3

    @property
    def num_spacings(self) -> int:
        """The number of spacings of a case."""
        return self.spacing.num_spacings if isinstance(self.spacing, SpacingRange) else 1

    def with_spacing(self, case_id: str, spacing_index: int) -> "Preprocessing":
        """That of a case, with spacing number `spacing_index` of a range."""
        if not isinstance(self.spacing, SpacingRange):
            return self
        return replace(self, spacing=self.spacing.of_case(case_id, spacing_index))

    def grid(self, volume: Volume) -> tuple[tuple[int, int, int], np.ndarray]:
        """(shape, affine) of a volume's grid; in the middle of a range of spacings."""
        from tubesynth.volume.resample import target_grid

        spacing, resolution = self.spacing, self.resolution
        if isinstance(spacing, SpacingRange):
            spacing = spacing.middle
        if spacing is None:
            extent_mm = np.array(volume.shape) * volume.spacing
            spacing = (extent_mm / resolution)[: self.dim]
        return target_grid(volume, spacing, resolution)

    @property
    def spacing_text(self) -> str:
        """The spacing for a message."""
        if self.spacing is None:
            return "a size that fits the image (data.spacing: null)"
        if isinstance(self.spacing, SpacingRange):
            ends = zip(self.spacing.low, self.spacing.high, strict=True)
            return " x ".join(f"{low:g}-{high:g}" for low, high in ends) + " mm"
        return " x ".join(f"{s:g}" for s in self.spacing) + " mm"


def preprocess_image(image: Volume, preprocessing: Preprocessing) -> Volume:
    """A CT in HU on the model's grid: int16 HU (X, Y, Z), clipped to the window and rounded."""
    from tubesynth.volume.resample import resample_image

    shape, affine = preprocessing.grid(image)
    low, high = preprocessing.hu_window
    hu = resample_image(
        image, shape, affine, low, preprocessing.hu_window, preprocessing.antialias
    ).array
    # Clip and round in the memory order of the resampler, then make z the fastest axis.
    return Volume(np.ascontiguousarray(np.rint(hu.clip(low, high)).astype(np.int16)), affine)


def preprocess_labels(
    labels: Volume, preprocessing: Preprocessing, image: Volume | None = None
) -> Volume:
    """A label map on the model's grid: uint8 (X, Y, Z), by the nearest voxel, 0 outside.

    image: the CT on the model's grid, which the label map gets; by default its own grid decides.
    """
    from tubesynth.volume.resample import resample_labels

    shape, affine = preprocessing.grid(labels) if image is None else (image.shape, image.affine)
    return Volume(np.ascontiguousarray(resample_labels(labels, shape, affine).array), affine)


def read_case(case: Case, preprocessing: Preprocessing) -> tuple[Volume, Volume | None]:
    """Image and label map as stored in their files; InputError if their grids differ, or the image
    does not hold HU."""
    image = read_ct(case.image, preprocessing.dim, preprocessing.hu_window)
    if case.label is None:
        return image, None
    labels = read_labels(case.label, case.label_map)
    check_same_grid(image, labels, case.image, case.label)
    check_labels(labels.array, preprocessing.num_classes, case.label)
    return image, labels


def preprocess_case(
    image: Volume, labels: Volume | None, preprocessing: Preprocessing
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """({"image": int16 HU (X, Y, Z), "label": uint8 (X, Y, Z)}, affine (4, 4)) of a case."""
    placed = preprocess_image(image, preprocessing)
    arrays = {"image": placed.array}
    if labels is not None:
        arrays["label"] = preprocess_labels(labels, preprocessing, placed).array
    return arrays, placed.affine
