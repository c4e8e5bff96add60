"""The cases of a phantom data set: their settings, split and files.

Worker processes import this module; they cannot import the functions of a `__main__`.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tubesynth.phantom.anatomy import make_phantom
from tubesynth.volume.centreline_file import SUFFIX, write_centreline
from tubesynth.volume.classes import NINE_CLASSES, LabelScheme
from tubesynth.volume.files import write_volume


@dataclass(frozen=True)
class PhantomSettings:
    """All options that the bytes of a case depend on; resolution in voxels, spacing in mm."""

    seed: int
    resolution: tuple[int, int, int]
    spacing: tuple[float, float, float]
    labels: LabelScheme = NINE_CLASSES


def split_cases(cases: int, validation_fraction: float) -> dict[int, str]:
    """{case: "training" or "validation"}; case 2 is for validation, then each (1 / fraction)-th.

    The split of a case does not depend on the number of cases: more can be added later.
    """

    def num_validation(last_case: int) -> int:
        return int(1 + (last_case - 2) * validation_fraction + 1e-9)

    def is_validation(case: int) -> bool:
        return case > 1 and num_validation(case) > num_validation(case - 1)

    return {c: "validation" if is_validation(c) else "training" for c in range(1, cases + 1)}


def case_files(root: Path, split: dict[int, str], case: int) -> tuple[Path, Path, Path]:
    """Paths of the image, the label map and the centreline of a case."""
    folder = root / split[case]
    return (
        folder / "images" / f"{case}.img.nii.gz",
        folder / "labels" / f"{case}.label.nii.gz",
        folder / "centrelines" / f"{case}{SUFFIX}",
    )


def write_case(settings: PhantomSettings, case: int, files: tuple[Path, Path, Path]) -> None:
    """Make one case and write its three files, the image last."""
    phantom = make_phantom(
        settings.seed, case, settings.resolution, settings.spacing, settings.labels
    )
    image, label, centreline = files
    write_centreline(centreline, phantom.branches)
    write_volume(label, phantom.labels, np.uint8)
    write_volume(image, phantom.image, np.int16)
