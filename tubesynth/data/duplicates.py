"""Images that are in training and in validation, which makes the scores of validation invalid.

doctor compares voxels. A training compares the sizes of the files and samples of their bytes: it
finds copies and links, and reads next to nothing of a thousand volumes.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import TypeVar

from tubesynth.data.layout import SPLITS
from tubesynth.runtime.errors import InputError
from tubesynth.runtime.reading import stored_json
from tubesynth.volume.cases import Case
from tubesynth.volume.digest import source_digest
from tubesynth.volume.files import source_files

Item = TypeVar("Item")
SplitImage = tuple[str, Path]  # training or validation, and a file or DICOM folder

BLOCK, BLOCKS = 1 << 16, 8  # bytes of a block, and blocks of a file


def groups(items: Iterable[Item], key: Callable[[Item], Hashable]) -> list[list[Item]]:
    """The items that share a key, where more than one has it; an empty key is none."""
    by_key = defaultdict(list)
    for item in items:
        if value := key(item):
            by_key[value].append(item)
    return [group for group in by_key.values() if len(group) > 1]


def shared_text(images: Iterable[object]) -> str:
    """The message on one image in both splits."""
    names = " = ".join(map(str, images))
    return f"{names}: one image in training and validation; remove it from one of them"


def refuse_sources(synthetic: list[Case], validation: list[Case]) -> None:
    """InputError for a synthesis of a validation case's label map, which its JSON file names: the
    scores of that case would be those of an anatomy that was trained on.
    """
    digests = {source_digest(case.label): case.label for case in validation if case.label}
    for case in synthetic:
        record = stored_json(case.image.with_name(f"{case.id}.json"))
        label = digests.get(str(record.get("source_sha256")))
        if label is not None:
            raise InputError(
                f"{case.image}: a synthesis of the label map {label}, which is of a validation"
                " case: remove it, or synthesize from the label maps of training"
            )


def shared_warning(training: list[Case], validation: list[Case]) -> str | None:
    """The warning of a training whose splits share images; None: no two of their files are equal.

    Files are opened where another of the other split has their size.
    """
    splits = zip(SPLITS, (training, validation), strict=True)
    images = [(name, case.image) for name, cases in splits for case in cases]
    of_equal_size = [image for group in _shared(images, _sizes) for image in group]
    shared = _shared(of_equal_size, _sample)
    if not shared:
        return None
    more = f" (and {len(shared) - 1} more)" if len(shared) > 1 else ""
    return f"{shared_text(image for _, image in shared[0])}{more}: VALIDATION SCORES ARE INVALID"


def _shared(images: list[SplitImage], key: Callable[[Path], Hashable]) -> list[list[SplitImage]]:
    """The groups of images of an equal key that are of both splits."""
    return [group for group in groups(images, lambda each: key(each[1])) if len(dict(group)) > 1]


def _sizes(image: Path) -> tuple[int, ...]:
    return tuple(file.stat().st_size for file in source_files(image))


def _sample(image: Path) -> bytes:
    """A digest of blocks, evenly over a volume's file, of several over the middle one."""
    files, digest = source_files(image), hashlib.sha256()
    with open(files[len(files) // 2], "rb", buffering=0) as stream:
        size = stream.seek(0, 2)
        for block in range(BLOCKS):
            stream.seek(block * size // BLOCKS)
            digest.update(stream.read(BLOCK))
    return digest.digest()
