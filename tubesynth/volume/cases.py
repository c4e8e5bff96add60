"""The cases of a folder: images and label maps paired by file name.

A case's id is its file name up to the first dot, or the DICOM UID that the name begins with. Only
the id pairs an image with its label map, never the order of a listing.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tubesynth.runtime.errors import InputError, is_utf_8
from tubesynth.runtime.reading import require_folder
from tubesynth.volume.files import SUFFIXES, file_suffix, is_dicom_folder

UID = re.compile(r"[012](?:\.\d+){3,}[^.]*")  # 1.2.840.1 and 1.2.840.1_s0
CHANNEL = "_0000"


@dataclass(frozen=True)
class Case:
    """The files of a case: an image (or a DICOM folder) and its label map, if it has one.

    label_map: the class of each stored value of a label map of another scheme (data.label_map).
    """

    id: str
    image: Path
    label: Path | None = None
    label_map: Mapping[int, int] | None = None


def case_id(path) -> str:
    """The file's name up to the first dot, but for a DICOM UID: 12.img.nii.gz is case 12."""
    name = Path(path).name
    uid = UID.match(name)
    return uid[0] if uid else name.split(".")[0]


def without_channel(files: dict[str, Path]) -> dict[str, Path]:
    """Files by id, without the _0000 of nnU-Net's images, whose label maps have none.

    Only where all ids of several end so: else they may be the numbers of patients.
    """
    if len(files) < 2 or not all(case.endswith(CHANNEL) for case in files):
        return files
    return {case.removesuffix(CHANNEL): path for case, path in files.items()}


def visible_entries(folder: Path) -> list[Path]:
    """The files and folders of a folder, sorted, without hidden ones.

    InputError for a name of other bytes than UTF-8, which no report could hold, and for a link of
    a volume that leads nowhere, which would leave out its case.
    """
    entries = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    for path in entries:
        if not is_utf_8(path.name):
            raise InputError(f"{path}: the name is no UTF-8: rename it")
        if file_suffix(path) and path.is_symlink() and not path.exists():
            raise InputError(
                f"{path}: a link to {os.readlink(path)}, which does not exist: mend it"
            )
    return entries


def find_cases(folder) -> dict[str, Path]:
    """{case id: file or DICOM folder} of one folder, in natural order (2 before 10)."""
    folder = Path(folder)
    require_folder(folder, "check the path, or data.root")
    files: dict[str, list[Path]] = {}
    try:
        for path in visible_entries(folder):
            if file_suffix(path) or is_dicom_folder(path):
                files.setdefault(case_id(path), []).append(path)
            elif path.name.lower().endswith(SUFFIXES):
                raise InputError(
                    f"{path}: a folder with a volume's name: put the volume itself there"
                )
    except PermissionError as error:
        raise InputError(
            f"{error.filename}: may not be read ({error.strerror}): give permission"
        ) from error
    if not files and is_dicom_folder(folder):  # of one series
        return {case_id(folder.resolve()): folder}
    if not files:
        raise InputError(f"{folder}: holds no volumes ({', '.join(SUFFIXES)} or DICOM folders)")
    for case, paths in files.items():
        if len(paths) > 1:
            names = ", ".join(path.name for path in paths)
            raise InputError(
                f"{folder}: case {case} has {len(paths)} files ({names}); rename all but one,"
                " or move copies away: the case is the file name up to the first dot"
            )
    return without_channel({case: files[case][0] for case in sorted(files, key=natural_order)})


def pair_cases(
    images_dir, labels_dir=None, label_map: Mapping[int, int] | None = None
) -> list[Case]:
    """Images with their label maps by case id; InputError names the files without a partner."""
    images = find_cases(images_dir)
    if labels_dir is None:
        return [Case(case, path) for case, path in images.items()]
    labels = find_cases(labels_dir)
    problems = []
    for files, partners, kinds, folder in (
        (images, labels, ("image", "label map"), labels_dir),
        (labels, images, ("label map", "image"), images_dir),
    ):
        unpaired = [path.name for case, path in files.items() if case not in partners]
        if unpaired:
            names = ", ".join(unpaired[:10]) + (", ..." if len(unpaired) > 10 else "")
            count = f"{len(unpaired)} {kinds[0]}{'s' * (len(unpaired) > 1)}"
            problems.append(f"{folder}: no {kinds[1]} for {count} ({names})")
    if problems:
        raise InputError(
            f"unpaired: {'; '.join(problems)}: add files or rename them: the two of a case have one"
            f" name up to the first dot, without {CHANNEL} where all images end so"
        )
    return [Case(case, path, labels[case], label_map) for case, path in images.items()]


def natural_order(text: str) -> list:
    """A sort key with the numbers in a text as numbers: 2 before 10."""
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in re.split(r"(\d+)", text) if p]
