"""The files of one prepared case and its record in the manifest.

Worker processes import this module; they cannot import the functions of a `__main__`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tubesynth.data import manifest
from tubesynth.prepare.imagecas import (
    Source,
    crop,
    heart_box,
    label_map,
    place,
)
from tubesynth.runtime.errors import InputError
from tubesynth.runtime.reading import fits
from tubesynth.volume.classes import LabelScheme
from tubesynth.volume.files import file_suffix, source_files, write_volume
from tubesynth.volume.hounsfield import read_ct
from tubesynth.volume.nifti import with_axes_of


@dataclass(frozen=True)
class Options:
    """The settings that decide the bytes of a case; link decides only how its image is placed."""

    root: Path
    scheme: LabelScheme
    label_map: Mapping[int, int] | None  # of the coronaries' files; None: 1 is the vessel class
    crop_margin_mm: float | None  # None: images are not cropped
    link: str  # hard | copy


def make_case(source: Source, split: str, options: Options) -> dict | str:
    """Write a case's files and, last, its record; returns the record, or the error's message."""
    labels, notes, box = None, [], None
    try:
        image = read_ct(source.image, 3, window=None)
        if source.label is not None:
            labels, notes = label_map(source, image, options.scheme, options.label_map)
    except InputError as error:
        return str(error)
    root, margin_mm = options.root, options.crop_margin_mm
    if margin_mm is not None and labels is not None:
        box = heart_box(labels, margin_mm)
        if box is None:
            notes.append("no labels to crop to: kept whole")
        else:
            image, labels = crop(image, box), crop(labels, box)
    two_files = len(source_files(source.image)) > 1  # header and data: written as one file
    is_written = two_files or margin_mm is not None
    suffix = ".nii.gz" if is_written else file_suffix(source.image)
    image_path = root / split / "images" / f"{source.id}.img{suffix}"
    if is_written:
        write_volume(image_path, with_axes_of(image, source.image), np.int16)
        method = "converted" if margin_mm is None else "cropped"
    else:
        method = place(source.image, image_path, options.link)
    record = {
        "part": split,
        "image": manifest.file_record(image_path, root),
        "made": method,
        "box": None if box is None else [[side.start, side.stop] for side in box],
        "sources": [manifest.file_record(path) for path in source.files],
        "notes": notes,
    }
    if labels is not None:
        label_path = root / split / "labels" / f"{source.id}.label.nii.gz"
        write_volume(label_path, with_axes_of(labels, source.image), np.uint8)
        values, counts = np.unique(labels.array, return_counts=True)
        record["label"] = manifest.file_record(label_path, root)
        record["class_voxels"] = dict(zip(map(str, values.tolist()), counts.tolist(), strict=True))
    manifest.add(root, source.id, record)
    return record


def is_finished(root: Path, source: Source, split: str, record: dict | None) -> bool:
    """Whether sources and outputs are unchanged since the record was written."""
    if record is None or record["part"] != split or len(record["sources"]) != len(source.files):
        return False
    kinds = ("image",) if source.label is None else ("image", "label")
    if not all(fits(record.get(kind), manifest.FILE_FORM) for kind in kinds):
        return False
    outputs = [(root / record[kind]["path"], record[kind]) for kind in kinds]
    pairs = [*outputs, *zip(source.files, record["sources"], strict=True)]
    return all(manifest.is_unchanged(path, file_record) for path, file_record in pairs)


def remove_outputs(root: Path, record: dict) -> None:
    """Delete the files of a case."""
    for kind in ("image", "label"):
        if fits(record.get(kind), manifest.FILE_FORM):
            path = root / record["part"] / f"{kind}s" / Path(record[kind]["path"]).name
            path.unlink(missing_ok=True)
