"""The cases of a data folder: the training layout, one pair of folders, or plain files.

    ROOT/{training,validation}/{images,labels}    the layout for training
    ROOT/{images,labels}                          one set
    ROOT/N.img.nii.gz, ROOT/N.label.nii.gz        plain files, also in subfolders, as in ImageCAS
    ROOT/*/CTCA/N.nrrd, ROOT/*/Annotations/N.nrrd    ASOCA; also without the folder above
    ROOT/imagesTr/N_0000.nii.gz, ROOT/labelsTr/N.nii.gz    nnU-Net, of one channel

Unpaired and doubled files are returned as a list of problems, so that all can be reported.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tubesynth.runtime.errors import InputError
from tubesynth.runtime.reading import no_such, require_folder
from tubesynth.volume.cases import (
    Case,
    case_id,
    find_cases,
    natural_order,
    visible_entries,
    without_channel,
)
from tubesynth.volume.files import file_suffix

SPLITS = ("training", "validation")
ASOCA_FOLDERS = ("CTCA", "Annotations")  # of images and of label maps
LABEL_FOLDERS = ("Annotations", "labelsTr")

Problem = tuple[str | None, str]  # (case, message)
# (images, label maps or None) of training, then of validation
Folders = Sequence[tuple[Path, Path | None]]


@dataclass
class Split:
    """The cases of one folder of images; `name` is training, validation or ''."""

    name: str
    cases: list[Case] = field(default_factory=list)
    has_labels: bool = False  # the folder has label maps
    problems: list[Problem] = field(default_factory=list)


def find_splits(
    root: Path, label_map: Mapping[int, int] | None = None, folders: Folders | None = None
) -> list[Split]:
    """The splits of a data folder; InputError if the folder does not exist.

    label_map: the class of each stored value of its label maps, where they are no classes. folders:
    those of training and validation, in place of the data folder.
    """
    splits = _find_splits(Path(root)) if folders is None else _named_splits(folders)
    for split in splits:
        split.cases = [replace(case, label_map=label_map) for case in split.cases]
    return splits


def _find_splits(root: Path) -> list[Split]:
    require_folder(root, "check data.root or --data")
    if any((root / name).is_dir() for name in SPLITS):
        return _named_splits([(root / name / "images", root / name / "labels") for name in SPLITS])
    if (root / "images").is_dir():
        return [paired_folders(root / "images", root / "labels", "")]
    return [plain_files(root)]


def _named_splits(folders: Folders) -> list[Split]:
    """Training and validation, of which both or neither have label maps."""
    pairs = list(zip(folders, SPLITS, strict=True))
    splits = [paired_folders(images, labels, name) for (images, labels), name in pairs]
    for split, (_, labels) in zip(splits, folders, strict=True):
        if labels and not split.has_labels and any(other.has_labels for other in splits):
            split.problems.append((None, f"{labels}: {no_such(labels, 'folder')}; add it"))
    return splits


def paired_folders(image_folder: Path, label_folder: Path | None, name: str) -> Split:
    """The cases of a folder of images, with their label maps by case id."""
    split = Split(name)
    images = _cases_or_problem(image_folder, split)
    labels: dict[str, Path] = {}
    if label_folder and label_folder.is_dir():
        split.has_labels = True
        labels = _cases_or_problem(label_folder, split)
        for case in images.keys() - labels.keys():
            split.problems.append((case, f"{images[case]} has no label map in {label_folder}"))
        for case in labels.keys() - images.keys():
            split.problems.append((case, f"{labels[case]} has no image in {image_folder}"))
    split.cases = [Case(case, path, labels.get(case)) for case, path in images.items()]
    split.problems.sort(key=lambda problem: (problem[0] or "", problem[1]))
    return split


def plain_files(root: Path) -> Split:
    """Files N.img.* and N.label.*, or images alone, in a folder and its subfolders."""
    split = Split("")
    images, labels = scan(root, split.problems)
    if not images and not labels:  # the subfolders may be DICOM series
        images = _cases_or_problem(root, split)
        return Split("", [Case(case, path) for case, path in images.items()], False, split.problems)
    split.has_labels = bool(labels)
    for case in sorted(labels.keys() - images.keys()):
        split.problems.append((case, f"{labels[case]} has no image"))
    if labels:
        for case in sorted(images.keys() - labels.keys()):
            split.problems.append((case, f"{images[case]} has no label map"))
    split.cases = [Case(case, path, labels.get(case)) for case, path in images.items()]
    return split


def scan(root: Path, problems: list[Problem]) -> tuple[dict[str, Path], dict[str, Path]]:
    """({id: image}, {id: label map}) of a folder and its subfolders, in natural order of the ids.

    Label maps have .label. in their name, or lie in one of LABEL_FOLDERS. A second file of an id is
    added to the problems.
    """
    images: dict[str, Path] = {}
    labels: dict[str, Path] = {}
    folders = [root, *(path for path in visible_entries(root) if path.is_dir())]
    deeper = [path for folder in folders[1:] for path in visible_entries(folder) if path.is_dir()]
    folders += [path for path in deeper if path.name in ASOCA_FOLDERS]
    for folder in folders:
        for path in visible_entries(folder):
            name = path.name.lower()
            if not file_suffix(path):
                continue
            is_label = ".label." in name or folder.name in LABEL_FOLDERS
            files = labels if is_label else images
            case = case_id(path)
            if case in files:
                problems.append((case, f"{path}: {files[case]} has the same id; rename one"))
            else:
                files[case] = path
    return without_channel(_ordered(images)), _ordered(labels)


def _ordered(files: dict[str, Path]) -> dict[str, Path]:
    return {case: files[case] for case in sorted(files, key=natural_order)}


def _cases_or_problem(folder: Path, split: Split) -> dict[str, Path]:
    """{id: file} of a folder; {} and a problem of the split where it cannot be read."""
    try:
        return find_cases(folder)
    except InputError as error:
        split.problems.append((None, str(error)))
        return {}
