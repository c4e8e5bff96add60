"""Label maps from the files of ImageCAS and TotalSegmentator, on the grid of each image.

ImageCAS (Zeng et al. 2023) comes as N.img.nii.gz and N.label.nii.gz in subfolders 1-200 to
801-1000, ASOCA (Gharleghi et al. 2022) as Normal/CTCA/N.nrrd and Normal/Annotations/N.nrrd; label
maps of both are 0 and 1, the coronary arteries. TotalSegmentator's task
heartchambers_highres gives the heart: one file a case with values 1 to 7, or a folder with one mask
a structure. Label maps are written with the axes of the stored image, so that every program
overlays them.
"""

import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from tubesynth.data.layout import Problem, scan
from tubesynth.runtime.atomic import replacing
from tubesynth.runtime.errors import InputError
from tubesynth.runtime.reading import require_folder
from tubesynth.volume.cases import case_id, natural_order, visible_entries
from tubesynth.volume.classes import NINE_CLASSES, LabelScheme, translate
from tubesynth.volume.files import (
    LABEL_REMEDY,
    as_classes,
    check_same_grid,
    file_suffix,
    read_label_values,
    read_labels,
    source_files,
)
from tubesynth.volume.grid import Box, Volume, bounding_box, same_grid

# The values 1 to 7 of a heartchambers_highres file, in the order of the nine classes.
HEARTCHAMBERS = tuple(
    NINE_CLASSES.sources[name][0] for name in NINE_CLASSES.names[1 : NINE_CLASSES.vessel]
)
GRID_TOLERANCE = 0.1  # of the smallest voxel side: grids that differ by less are the same
MAX_LISTED_IDS = 20


@dataclass(frozen=True)
class HeartFiles:
    """TotalSegmentator's files of one case: one with values 1 to 7, or one mask a structure."""

    multi_label: Path | None = None
    masks: tuple[tuple[str, Path], ...] = ()  # (structure, file)

    @property
    def files(self) -> list[Path]:
        multi_label = [] if self.multi_label is None else [self.multi_label]
        return multi_label + [path for _, path in self.masks]


@dataclass(frozen=True)
class Source:
    """The files of one case."""

    id: str
    image: Path
    label: Path | None  # None: all cases are images alone
    heart: HeartFiles = HeartFiles()

    @property
    def files(self) -> list[Path]:
        """All files; header and data file of a volume that has two."""
        labels = [] if self.label is None else [self.label]
        volumes = [self.image, *labels, *self.heart.files]
        return [file for volume in volumes for file in source_files(volume)]


def heart_structures(scheme: LabelScheme) -> tuple[str, ...]:
    """TotalSegmentator's structures in the classes of a scheme, without the vessel class."""
    structures = dict.fromkeys([*chain.from_iterable(scheme.sources.values()), *HEARTCHAMBERS])
    return tuple(s for s in structures if scheme.class_of(s) not in (0, scheme.vessel))


def find_sources(input_dir: Path, heart_dir: Path | None, scheme: LabelScheme) -> list[Source]:
    """All cases of a folder and its subfolders; InputError lists the ids that lack a file.

    A folder without any label map is one of images alone, unless heart_dir is given.
    """
    require_folder(input_dir, "check --input-dir")
    problems: list[Problem] = []
    images, labels = scan(Path(input_dir), problems)
    if problems:
        raise InputError(problems[0][1])
    if not images and not labels:
        raise InputError(f"{input_dir}: no N.img.nii.gz in it or its subfolders; check --input-dir")
    hearts = find_hearts(heart_dir, set(images), heart_structures(scheme)) if heart_dir else {}
    images_only = not labels and heart_dir is None
    missing_ids = {
        "label map": set() if images_only else images.keys() - labels.keys(),
        "image": labels.keys() - images.keys(),
        f"heart structures in {heart_dir}": images.keys() - hearts.keys() if heart_dir else set(),
    }
    missing = [f"no {kind} for {id_list(ids)}" for kind, ids in missing_ids.items() if ids]
    if missing:
        raise InputError(f"{input_dir}: {'; '.join(missing)}; add these files or remove the cases")
    return [
        Source(case, path, labels.get(case), hearts.get(case, HeartFiles()))
        for case, path in images.items()
    ]


def find_hearts(
    heart_dir: Path, cases: set[str], structures: tuple[str, ...]
) -> dict[str, HeartFiles]:
    """{case: files}: ID.nii.gz, ID.anything.nii.gz, or a folder ID; also one folder deeper."""
    require_folder(heart_dir, "check --heart-dir")
    if not structures:
        raise InputError(
            "labels.sources: no class holds a structure of TotalSegmentator; add them, or leave out"
            " --heart-dir"
        )
    hearts: dict[str, HeartFiles] = {}
    folders = [Path(heart_dir)]
    while folders:
        folder = folders.pop(0)
        for path in visible_entries(folder):
            case = case_id(path)
            if path.is_dir() and case not in cases and folder == Path(heart_dir):
                folders.append(path)
            if case not in cases or not (path.is_dir() or file_suffix(path)):
                continue
            heart = _in_folder(path, structures) if path.is_dir() else HeartFiles(path)
            if case in hearts:
                raise InputError(
                    f"{path}: {hearts[case].files[0]} is of case {case} too; rename one"
                )
            if heart.files:
                hearts[case] = heart
    return hearts


def _in_folder(folder: Path, structures: tuple[str, ...]) -> HeartFiles:
    """The masks of the structures in a folder, or the one multi-label file that it holds."""
    volumes = [p for p in visible_entries(folder) if file_suffix(p)]
    path_of = {case_id(path): path for path in volumes}
    missing = [name for name in structures if name not in path_of]
    if len(missing) < len(structures):
        if missing:
            raise InputError(f"{folder}: no {', '.join(missing)}; run TotalSegmentator again")
        return HeartFiles(masks=tuple((name, path_of[name]) for name in structures))
    if len(volumes) > 1:
        raise InputError(
            f"{folder}: neither the masks {', '.join(structures)} nor one multi-label file; run"
            " TotalSegmentator's heartchambers_highres again"
        )
    return HeartFiles(volumes[0]) if volumes else HeartFiles()


def label_map(
    source: Source, image: Volume, scheme: LabelScheme, class_of_value: Mapping[int, int] | None
) -> tuple[Volume, list[str]]:
    """(uint8 label map of the scheme on the image's grid, notes on labels that were resampled).

    class_of_value: of the source's label map, which lies on top of the heart's structures; None:
    it holds 0 and 1, the coronary arteries.
    """
    assert source.label is not None
    values = read_label_values(source.label)
    check_same_grid(image, values, source.image, source.label)
    if class_of_value is None and (highest := int(values.array.max())) > 1:
        raise InputError(
            f"{source.label}: label value {highest}; ImageCAS and ASOCA have 0 and 1 (coronaries)"
            f" only: in a file for --config, {LABEL_REMEDY}"
        )
    labels = as_classes(values, class_of_value or {1: scheme.vessel}, source.label)
    classes = np.zeros(image.shape, dtype=np.uint8, order="F")
    notes: list[str] = []
    if source.heart.multi_label is not None:
        path = source.heart.multi_label
        heart = read_label_values(path)
        if (highest := int(heart.array.max())) > len(HEARTCHAMBERS):
            raise InputError(
                f"{path}: label value {highest}; heartchambers_highres has 1 to"
                f" {len(HEARTCHAMBERS)}"
            )
        heart = _on_grid(heart, path, image, source.image, notes)
        classes[:] = translate(heart.array, scheme.from_nine_classes())
    for structure, path in source.heart.masks:
        mask = _on_grid(read_labels(path), path, image, source.image, notes)
        classes[mask.array > 0] = scheme.class_of(structure)
    np.copyto(classes, labels.array, where=labels.array > 0)
    return Volume(classes, image.affine), notes


def _on_grid(
    labels: Volume, path: Path, image: Volume, image_path: Path, notes: list[str]
) -> Volume:
    """Labels on the image's grid; a note where they had to be resampled."""
    from tubesynth.volume.resample import resample_labels

    tolerance_mm = GRID_TOLERANCE * float(image.spacing.min())
    if same_grid(image, labels, tolerance_mm=tolerance_mm):
        return labels
    resampled = resample_labels(labels, image.shape, image.affine)
    if labels.array.any() and not resampled.array.any():
        raise InputError(
            f"{path}: none of its structures lies within {image_path}; give the file of this case,"
            " or correct its header"
        )
    notes.append(f"{path.name}: resampled onto the image's grid")
    return resampled


def heart_box(labels: Volume, margin_mm: float) -> Box | None:
    """The labels' bounding box with the same margin on both sides of an axis; None without labels.

    Where the image ends within the margin, the margin of both sides is reduced, so that the middle
    of the box is the middle of the heart. No label is cut off.
    """
    bounds = bounding_box(labels.array > 0)
    if bounds is None:
        return None
    sides = []
    for side, n, spacing in zip(bounds, labels.shape, labels.spacing, strict=True):
        margin = min(int(round(margin_mm / spacing)), side.start, n - side.stop)
        sides.append(slice(side.start - margin, side.stop + margin))
    return sides[0], sides[1], sides[2]


def crop(volume: Volume, box: Box) -> Volume:
    """A box of a volume; its affine keeps every voxel at its place in the world."""
    affine = volume.affine.copy()
    affine[:3, 3] = volume.to_world(np.array([side.start for side in box]))
    return Volume(volume.array[box], affine)


def place(source: Path, target: Path, link: str) -> str:
    """Hard-links or copies a file to `target`, atomically; returns 'hard' or 'copy'.

    A copy is also made where the file system cannot link.
    """
    method = link
    with replacing(target) as temporary:
        if link == "hard":
            try:
                os.link(source.resolve(), temporary)
            except OSError:  # another file system, or one without links
                method = "copy"
        if method == "copy":
            shutil.copyfile(source, temporary)
    return method


def id_list(ids: Iterable[str]) -> str:
    ordered = sorted(ids, key=natural_order)
    ending = ", ..." if len(ordered) > MAX_LISTED_IDS else ""
    cases = "case" if len(ordered) == 1 else "cases"
    return f"{len(ordered)} {cases}: {', '.join(ordered[:MAX_LISTED_IDS])}{ending}"
