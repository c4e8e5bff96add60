"""ImageCAS cases as nine-class label maps: heart structures 1 to 7, the coronary arteries on top.

ImageCAS (Zeng et al. 2023) comes as N.img.nii.gz and N.label.nii.gz, coronaries 0/1, in subfolders
1-200 ... 801-1000. The heart comes from TotalSegmentator's heartchambers_highres: one file with
values 1 to 7 a case, or a folder with one mask a structure. All labels end on the image's grid, and
are stored with its axes, so that other programs find voxel on voxel.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tubesynth.data.layout import scan
from tubesynth.runtime.atomic import replacing
from tubesynth.runtime.errors import InputError
from tubesynth.volume.cases import case_id, natural_order
from tubesynth.volume.files import SUFFIXES, check_same_grid, read_labels, read_volume, source_files
from tubesynth.volume.grid import Volume, same_grid
from tubesynth.volume.nifti import stored_affine

STRUCTURES = (  # classes 1 to 7
    *("heart_myocardium", "heart_atrium_left", "heart_ventricle_left", "heart_atrium_right"),
    *("heart_ventricle_right", "aorta", "pulmonary_artery"),
)
CORONARIES = len(STRUCTURES) + 1


@dataclass(frozen=True)
class Source:
    """The files of one case. heart: none, one multi-label file, or one file a structure."""

    id: str
    image: Path
    label: Path
    heart: tuple[Path, ...] = ()

    @property
    def files(self) -> list[Path]:
        """All of them; of a header with its data, both."""
        volumes = [self.image, self.label, *self.heart]
        return [file for volume in volumes for file in source_files(volume)]


def find_sources(input_dir: Path, heart_dir: Path | None) -> list[Source]:
    """All cases of a folder and its subfolders; whatever lacks a file is listed by id."""
    if not Path(input_dir).is_dir():
        raise InputError(f"{input_dir}: no such folder; check --input-dir")
    problems: list[tuple[str, str]] = []
    images, labels = scan(Path(input_dir), problems)
    if problems:
        raise InputError(problems[0][1])
    if not images and not labels:
        raise InputError(f"{input_dir}: no N.img.nii.gz in it or its subfolders; check --input-dir")
    hearts = find_hearts(heart_dir, set(images)) if heart_dir else {}
    wanted = [("label map", images.keys() - labels.keys())]
    wanted.append(("image", labels.keys() - images.keys()))
    if heart_dir:
        wanted.append((f"heart structures in {heart_dir}", images.keys() - hearts.keys()))
    missing = [f"no {what} for {_listed(ids)}" for what, ids in wanted if ids]
    if missing:
        raise InputError(f"{input_dir}: {'; '.join(missing)}; add these files or remove the cases")
    return [Source(case, images[case], labels[case], hearts.get(case, ())) for case in images]


def find_hearts(heart_dir: Path, cases: set[str]) -> dict[str, tuple[Path, ...]]:
    """{case: files}: ID.nii.gz, ID.anything.nii.gz, or a folder ID; also one folder deeper."""
    if not Path(heart_dir).is_dir():
        raise InputError(f"{heart_dir}: no such folder; check --heart-dir")
    found: dict[str, tuple[Path, ...]] = {}
    folders = [Path(heart_dir)]
    while folders:
        folder = folders.pop(0)
        for path in sorted(folder.iterdir()):
            case = case_id(path)
            if path.is_dir() and case not in cases and folder == Path(heart_dir):
                folders.append(path)
            if case not in cases or not (path.is_dir() or path.name.lower().endswith(SUFFIXES)):
                continue
            files = _structures(path) if path.is_dir() else (path,)
            if case in found:
                raise InputError(f"{path}: {found[case][0]} is of case {case} too; keep one")
            if files:
                found[case] = files
    return found


def _structures(folder: Path) -> tuple[Path, ...]:
    """The seven masks of a folder in the order of the classes, or the one file that it holds."""
    volumes = [p for p in sorted(folder.iterdir()) if p.name.lower().endswith(SUFFIXES)]
    named = {case_id(path): path for path in volumes}
    there = [name for name in STRUCTURES if name in named]
    if there:
        missing = [name for name in STRUCTURES if name not in named]
        if missing:
            raise InputError(f"{folder}: no {', '.join(missing)}; run TotalSegmentator again")
        return tuple(named[name] for name in STRUCTURES)
    if len(volumes) > 1:
        raise InputError(
            f"{folder}: neither {STRUCTURES[0]} ... {STRUCTURES[-1]} nor one multi-label file"
        )
    return tuple(volumes)


def nine_classes(source: Source) -> tuple[Volume, Volume, list[str]]:
    """(image, label map of uint8 on its grid, notes on what had to be done)."""
    from tubesynth.volume.resample import resample_labels

    image, coronaries = read_volume(source.image), read_labels(source.label)
    check_same_grid(image, coronaries, source.image, source.label)
    if (highest := int(coronaries.array.max())) > 1:
        raise InputError(
            f"{source.label}: label value {highest}; ImageCAS has 0 and 1 (coronaries) only"
        )
    classes, notes = np.zeros(image.shape, dtype=np.uint8, order="F"), []
    for number, path in enumerate(source.heart, start=1):
        heart = read_labels(path)
        single = len(source.heart) > 1  # a mask: 0 and 1, or 0 and 255
        if (highest := int(heart.array.max())) > len(STRUCTURES) and not single:
            raise InputError(
                f"{path}: label value {highest}; heartchambers_highres has 1 to {len(STRUCTURES)}"
            )
        if not same_grid(image, heart, tolerance_mm=0.1 * float(image.spacing.min())):
            resampled = resample_labels(heart, image.shape, image.affine)
            if heart.array.any() and not resampled.array.any():
                raise InputError(
                    f"{path}: none of its structures lies within {source.image}; is it another"
                    " case's, or its header wrong?"
                )
            heart = resampled
            notes.append(f"{path.name}: resampled onto the image's grid")
        if single:
            classes[heart.array > 0] = number
        else:
            np.copyto(classes, heart.array)
    classes[coronaries.array > 0] = CORONARIES
    return image, Volume(classes, image.affine), notes


def heart_box(labels: Volume, margin_mm: float) -> tuple[slice, slice, slice] | None:
    """The labels' bounding box and a margin, equal on both sides of an axis: less of it where the
    image ends. So the middle of the crop is the middle of the heart, and no label is cut off.
    """
    from scipy import ndimage

    found = ndimage.find_objects((labels.array > 0).view(np.uint8))
    if not found:
        return None
    box = []
    for side, n, spacing in zip(found[0], labels.shape, labels.spacing, strict=True):
        margin = min(int(round(margin_mm / spacing)), side.start, n - side.stop)
        box.append(slice(side.start - margin, side.stop + margin))
    return tuple(box)


def crop(volume: Volume, box: tuple[slice, slice, slice]) -> Volume:
    """The part of a volume, where it was in the world."""
    affine = volume.affine.copy()
    affine[:3, 3] = volume.to_world([side.start for side in box])
    return Volume(volume.array[box], affine)


def stored_axes(volume: Volume, like: Path) -> Volume:
    """The volume with its axes in the order and direction that a NIfTI file has; RAS+ for others.

    It is no longer RAS+ then: for writing alone.
    """
    import nibabel as nib

    if not like.name.lower().endswith((".nii", ".nii.gz")):
        return volume
    stored = nib.io_orientation(stored_affine(like.read_bytes(), like))
    change = nib.orientations.ornt_transform(nib.io_orientation(volume.affine), stored)
    array = nib.orientations.apply_orientation(volume.array, change)
    moved = nib.orientations.inv_ornt_aff(change, volume.shape)
    return Volume(array, volume.affine @ moved)


def place(source: Path, target: Path, link: str) -> str:
    """Puts a file's content at `target`, atomically; 'hard' or 'copy': what it became."""
    made = link
    with replacing(target) as temporary:
        if link == "hard":
            try:
                os.link(source.resolve(), temporary)
            except OSError:  # another file system, or one without links
                made = "copy"
        if made == "copy":
            shutil.copyfile(source, temporary)
    return made


def _listed(ids) -> str:
    ids = sorted(ids, key=natural_order)
    return f"{len(ids)}: {', '.join(ids[:20])}" + (", ..." if len(ids) > 20 else "")
