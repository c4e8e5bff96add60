"""The grid that a model works on: volumes are brought to it, and become the tensors it takes.

Spacing (mm) and resolution (voxels) are those of the config unless others are given. A picture is a
volume of one slice, which the tensors of a two-dimensional model lack.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tubesynth.config.schema import Config
from tubesynth.runtime.errors import InputError
from tubesynth.volume.files import check_labels, check_one_slice
from tubesynth.volume.grid import Volume, centered_affine
from tubesynth.volume.intensity import unit_to_hu
from tubesynth.volume.resample import resample_image, resample_labels, target_grid


class ModelGrid:
    def __init__(self, config: Config, device: torch.device):
        self.config, self.device = config, device

    def prepare_image(self, volume: Volume, spacing=None, resolution=None) -> Volume:
        """A CT on the model's grid: same centre, fixed spacing, padded or cropped; HU."""
        shape, affine = self._target(volume, spacing, resolution)
        return resample_image(volume, shape, affine, fill=self.config.data.hu_window[0])

    def prepare_labels(self, labels: Volume, spacing=None, resolution=None) -> Volume:
        """A label map on the model's grid; ValueError for values that are no class."""
        check_labels(labels.array, self.config.labels.num_classes, "label map")
        shape, affine = self._target(labels, spacing, resolution)
        return resample_labels(labels, shape, affine)

    def blank_labels(self, spacing=None, resolution=None) -> Volume:
        """A label map of background around the origin."""
        data = self.config.data
        self._check_options(spacing, resolution)
        flat = (1,) * (3 - self.config.dim)
        shape = (*(resolution or data.resolution), *flat)
        affine = centered_affine(shape, (*(spacing or data.spacing), *flat))
        return Volume(np.zeros(shape, np.uint8), affine)

    def _target(self, volume: Volume, spacing, resolution):
        data = self.config.data
        self._check_options(spacing, resolution)
        if self.config.dim == 2:
            check_one_slice(volume, "input")
        return target_grid(volume, spacing or data.spacing, resolution or data.resolution)

    def _check_options(self, spacing, resolution) -> None:
        dim = self.config.dim
        for name, value in (("--resolution", resolution), ("--spacing", spacing)):
            good = value is None or (len(value) == dim and all(0 < n < math.inf for n in value))
            if not good:
                given = " ".join(map(str, value))
                raise InputError(f"{name} {given}: expected {dim} positive numbers")

    def tensor(self, array: np.ndarray) -> Tensor:
        """(X, Y, Z) -> the model's axes: (X, Y, Z), or (X, Y) of the one slice of a picture."""
        array = array[..., 0] if self.config.dim == 2 else array
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def volume(self, image: Tensor, affine: np.ndarray) -> Volume:
        """The first of (B, 1, X, ...) in [0, 1] -> int16 HU."""
        unit = image[0, 0].float().clamp(0, 1).cpu().numpy()
        unit = unit[..., None] if self.config.dim == 2 else unit
        hu = unit_to_hu(unit, self.config.data.hu_window)
        return Volume(np.rint(hu).astype(np.int16), affine)


def pad_to_multiple(image: Tensor, factor: int) -> tuple[Tensor, tuple]:
    """Edge padding at the far sides to multiples of the factor, and the crop that undoes it."""
    sizes = image.shape[2:]
    pads = [(-n) % factor for n in sizes]
    crop = (slice(None), slice(None), *[slice(0, n) for n in sizes])
    if not any(pads):
        return image, crop
    flat = [value for pad in reversed(pads) for value in (0, pad)]
    return F.pad(image, flat, mode="replicate"), crop
