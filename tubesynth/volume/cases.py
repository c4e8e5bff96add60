"""Which files of a folder are one case: images and label maps paired by file name.

A case's id is its file name up to the first dot. Only the id pairs an image with its label map,
never the order of a listing.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from tubesynth.runtime.errors import InputError
from tubesynth.volume.files import SUFFIXES, file_suffix, is_dicom_folder


@dataclass(frozen=True)
class Case:
    """An image and, where there is one, its label map."""

    id: str
    image: Path
    label: Path | None = None


def case_id(path) -> str:
    """The file's name up to the first dot: 12.img.nii.gz is case 12."""
    return Path(path).name.split(".")[0]


def find_cases(folder) -> dict[str, Path]:
    """{case id: file or DICOM folder} of one folder, in natural order (2 before 10)."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; check the path, or data.root")
    found: dict[str, list[Path]] = {}
    try:
        for path in sorted(folder.iterdir()):
            known = file_suffix(path) in SUFFIXES
            if not path.name.startswith(".") and (known or is_dicom_folder(path)):
                found.setdefault(case_id(path), []).append(path)
    except PermissionError as error:
        raise InputError(
            f"{error.filename}: may not be read ({error.strerror}): give permission"
        ) from error
    if not found:
        raise InputError(f"{folder}: holds no volumes ({', '.join(SUFFIXES)} or DICOM folders)")
    for case, paths in found.items():
        if len(paths) > 1:
            names = ", ".join(path.name for path in paths)
            raise InputError(
                f"{folder}: case {case} is there {len(paths)} times ({names}); keep one, or rename"
                " them: a case is known by its name up to the first dot"
            )
    return {case: found[case][0] for case in sorted(found, key=natural_order)}


def pair_cases(images_dir, labels_dir=None) -> list[Case]:
    """Images with their labels by case id; an unpaired file on either side is refused by name."""
    images = find_cases(images_dir)
    if labels_dir is None:
        return [Case(case, path) for case, path in images.items()]
    labels = find_cases(labels_dir)
    problems = []
    for wanted, there, folder in ((images, labels, labels_dir), (labels, images, images_dir)):
        missing = [path.name for case, path in wanted.items() if case not in there]
        if missing:
            listed = ", ".join(missing[:10]) + (", ..." if len(missing) > 10 else "")
            problems.append(f"{folder} has no partner for {len(missing)}: {listed}")
    if problems:
        raise InputError(
            f"unpaired cases: {'; '.join(problems)}; add or remove files (id = name up to the dot)"
        )
    return [Case(case, path, labels[case]) for case, path in images.items()]


def natural_order(text: str) -> list:
    """A sort key with the numbers in a text as numbers: 2 before 10."""
    return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in re.split(r"(\d+)", text) if p]
