"""Conversion of volumes to the grid and tensors of a model, and of its images to volumes.

The grid has the spacing (mm) and resolution (voxels) of the config, or those of an argument. A
two-dimensional image is a volume of one slice; tensors of a 2D model have no third axis.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tubesynth.build.preprocessing import preprocessing_of
from tubesynth.config.schema import Config
from tubesynth.data.preprocessing import Preprocessing, preprocess_image, preprocess_labels
from tubesynth.runtime.errors import InputError
from tubesynth.runtime.memory import available_bytes
from tubesynth.volume.files import check_dimensions, check_labels
from tubesynth.volume.grid import Volume, centered_affine
from tubesynth.volume.intensity import unit_to_hu

BYTES_PER_VOXEL = 5  # float32 image and uint8 label map


class ModelGrid:
    """The grid of a model on a device.

    Spacing and resolution, (3,) or (2,) for a 2D model, are by default those of the config; of a
    range of spacings the middle.
    """

    def __init__(self, config: Config, device: torch.device):
        self.config, self.device = config, device

    def image(
        self,
        volume: Volume,
        spacing: Sequence[float] | None = None,
        resolution: Sequence[int] | None = None,
    ) -> Volume:
        """A CT on the model's grid: int16 HU, clipped to the window as for training."""
        preprocessing = self.preprocessing(spacing, resolution)
        check_dimensions(volume, self.config.dim, "input")
        return preprocess_image(volume, preprocessing)

    def labels(
        self,
        labels: Volume,
        spacing: Sequence[float] | None = None,
        resolution: Sequence[int] | None = None,
        image: Volume | None = None,
    ) -> Volume:
        """A label map on the model's grid; InputError for a value that is not a class.

        image: the CT of the label map, already on the model's grid, which the label map then gets.
        """
        preprocessing = self.preprocessing(spacing, resolution)
        check_labels(labels.array, preprocessing.num_classes, "label map")
        check_dimensions(labels, self.config.dim, "label map")
        return preprocess_labels(labels, preprocessing, image)

    def blank_labels(
        self,
        spacing: Sequence[float] | None = None,
        resolution: Sequence[int] | None = None,
    ) -> Volume:
        """A label map of background, centered on the origin of world coordinates."""
        shape = self.preprocessing(spacing, resolution).resolution
        spacing = spacing or self.config.data.default_spacing
        if spacing is None:
            raise InputError(
                "spacing is not known without a label map: this model has that of each input"
                " (data.spacing: null): give one in mm"
            )
        affine = centered_affine(shape, (*spacing, 1.0)[:3])
        return Volume(np.zeros(shape, np.uint8), affine)

    def tensor(self, array: np.ndarray) -> Tensor:
        """An array (X, Y, Z) as a tensor on the host: (X, Y, Z), or (X, Y) for a 2D model."""
        array = array[..., 0] if self.config.dim == 2 else array
        return torch.from_numpy(np.ascontiguousarray(array))

    def unit_image(self, image: Volume) -> Tensor:
        """A CT on the model's grid as a tensor (1, 1, X, ...) float32 in [0, 1]."""
        hu = self.tensor(image.array)[None, None].to(self.device)
        return hu_to_unit_image(hu, self.config.data.hu_window)

    def volume(self, image: Tensor, affine: np.ndarray) -> Volume:
        """The first image of (B, 1, X, ...) in [0, 1] as a volume (X, Y, Z) in int16 HU."""
        hu = unit_to_hu(image[0, 0], self.config.data.hu_window).round().to(torch.int16)
        return Volume((hu[..., None] if self.config.dim == 2 else hu).cpu().numpy(), affine)

    def preprocessing(
        self, spacing: Sequence[float] | None, resolution: Sequence[int] | None
    ) -> Preprocessing:
        """How images get to the grid; InputError for a spacing or resolution that none has."""
        dim, settings = self.config.dim, preprocessing_of(self.config)
        for name, value in (("resolution", resolution), ("spacing", spacing)):
            if value is None:
                continue
            if not isinstance(value, Sequence | np.ndarray):
                raise InputError(f"{name} {value!r}: expected {dim} positive numbers")
            if len(value) != dim or not all(0 < n < math.inf for n in value):
                numbers = " ".join(map(str, value))
                raise InputError(f"{name} {numbers}: expected {dim} positive numbers")
            if name == "resolution" and not all(n == int(n) for n in value):
                numbers = " ".join(map(str, value))
                raise InputError(f"{name} {numbers}: expected whole numbers")
            if name == "spacing" and not all(1e-3 <= size <= 1e3 for size in value):
                numbers = " ".join(map(str, value))
                raise InputError(f"{name} {numbers}: expected 0.001 to 1000 mm")
            settings = replace(settings, **{name: tuple(value)})
        needed = BYTES_PER_VOXEL * math.prod(settings.resolution)
        if resolution is not None and needed > (available := available_bytes()):
            raise InputError(
                f"resolution {' '.join(map(str, resolution))}: the volume alone takes"
                f" {needed / 2**30:.3g} GiB of memory, and {available / 2**30:.3g} GiB are"
                " available: lower it"
            )
        return settings


def hu_to_unit_image(
    hu: Tensor, window: Sequence[float], intensity: Tensor | None = None
) -> Tensor:
    """int16 HU (B, 1, X, ...) within the window -> float32 in [0, 1], for training and inference.

    intensity: (B, 2) scale and shift of the augmentation, applied to the [0, 1] values.
    """
    image = hu.to(torch.float32, copy=True)  # then in place: allocation is the main cost
    low, high = map(float, window)
    if intensity is None:
        intensity = torch.tensor([[1.0, 0.0]], device=image.device)
    scale, shift = intensity.unbind(1)
    row = (-1, *[1] * (image.ndim - 1))
    # unit = (HU - low) / (high - low) * scale + shift, with one multiplication
    factor = (scale / (high - low)).reshape(row)
    return image.sub_(low).mul_(factor).add_(shift.reshape(row)).clamp_(0, 1)


def pad_to_multiple(image: Tensor, factor: int) -> tuple[Tensor, tuple[slice, ...]]:
    """Edge padding of (B, C, X, ...) at the far sides to multiples of the factor, and the slices
    that crop it again.
    """
    sizes = image.shape[2:]
    pads = [(-n) % factor for n in sizes]
    crop = (slice(None), slice(None), *[slice(0, n) for n in sizes])
    if not any(pads):
        return image, crop
    # F.pad takes (before, after) pairs from the last axis to the first.
    pairs = [value for pad in reversed(pads) for value in (0, pad)]
    return F.pad(image, pairs, mode="replicate"), crop
