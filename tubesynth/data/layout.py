"""Which images and labels a folder holds: the training layout, images/ and labels/, or plain files.

    ROOT/{training,validation}/{images,labels}    what training reads
    ROOT/{images,labels}                          one set
    ROOT/N.img.nii.gz, ROOT/N.label.nii.gz        plain, also in subfolders, as ImageCAS comes

Nothing is refused here: what does not fit is returned as a list of problems, all of them at once.
"""

from dataclasses import dataclass, field
from pathlib import Path

from tubesynth.runtime.errors import InputError
from tubesynth.volume.cases import Case, case_id, find_cases, natural_order
from tubesynth.volume.files import SUFFIXES

PARTS = ("training", "validation")


@dataclass
class Part:
    """The cases of one folder of images; `name` is training, validation or ''."""

    name: str
    cases: list[Case] = field(default_factory=list)
    labelled: bool = False  # there is a folder of labels, or a file of them
    problems: list[tuple[str | None, str]] = field(default_factory=list)  # (case, what is wrong)


def find_parts(root: Path) -> list[Part]:
    """The parts of a data folder; InputError only where there is no folder."""
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; check data.root or --data")
    if any((root / name).is_dir() for name in PARTS):
        return [paired(root / name, name) for name in PARTS]
    if (root / "images").is_dir():
        return [paired(root, "")]
    return [plain(root)]


def paired(folder: Path, name: str) -> Part:
    """folder/images with folder/labels, by case id."""
    part = Part(name)
    images = _listed(folder / "images", part)
    labels = {}
    if (folder / "labels").is_dir():
        part.labelled = True
        labels = _listed(folder / "labels", part)
        for case in images.keys() - labels.keys():
            part.problems.append((case, f"{images[case]} has no label map in {folder / 'labels'}"))
        for case in labels.keys() - images.keys():
            part.problems.append((case, f"{labels[case]} has no image in {folder / 'images'}"))
    elif name:
        part.problems.append((None, f"{folder / 'labels'}: no such folder; training needs labels"))
    part.cases = [Case(case, path, labels.get(case)) for case, path in images.items()]
    part.problems.sort(key=lambda problem: (problem[0] or "", problem[1]))
    return part


def plain(root: Path) -> Part:
    """Files N.img.* and N.label.*, or images alone, in a folder and its subfolders."""
    part = Part("")
    images, labels = scan(root, part.problems)
    if not images and not labels:  # perhaps folders of DICOM
        images = _listed(root, part)
        return Part("", [Case(case, path) for case, path in images.items()], False, part.problems)
    part.labelled = bool(labels)
    for case in sorted(labels.keys() - images.keys()):
        part.problems.append((case, f"{labels[case]} has no image"))
    if labels:
        for case in sorted(images.keys() - labels.keys()):
            part.problems.append((case, f"{images[case]} has no label map"))
    part.cases = [Case(case, path, labels.get(case)) for case, path in images.items()]
    return part


def scan(root: Path, problems: list) -> tuple[dict[str, Path], dict[str, Path]]:
    """({id: image}, {id: label map}) of a folder and the folders in it; a second file of an id is
    a problem (case, message).
    """
    images, labels = {}, {}
    folders = [root, *sorted(p for p in root.iterdir() if p.is_dir())]
    for folder in folders:
        for path in sorted(folder.iterdir()):
            name = path.name.lower()
            if name.startswith(".") or not path.is_file() or not name.endswith(SUFFIXES):
                continue
            found = labels if ".label." in name else images
            case = case_id(path)
            if case in found:
                problems.append((case, f"{path}: {found[case]} has the same id; keep one"))
            else:
                found[case] = path
    return _in_order(images), _in_order(labels)


def _in_order(found: dict[str, Path]) -> dict[str, Path]:
    return {case: found[case] for case in sorted(found, key=natural_order)}


def _listed(folder: Path, part: Part) -> dict[str, Path]:
    try:
        return find_cases(folder)
    except InputError as error:
        part.problems.append((None, str(error)))
        return {}
