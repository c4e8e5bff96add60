"""The label maps that synthesize reads: their folder, their classes and their centrelines."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from tubesynth.runtime.errors import InputError
from tubesynth.volume.cases import find_cases
from tubesynth.volume.centreline_file import SUFFIX, read_centreline


def label_translation(pairs: list[str] | None, num_classes: int) -> np.ndarray | None:
    """(256,) uint8: the class of each stored value; None without --label-map."""
    if pairs is None:
        return None
    table, values = np.zeros(256, dtype=np.uint8), set()
    for pair in pairs:
        value, equals, label = pair.partition("=")
        is_pair = equals and value.isdecimal() and label.isdecimal()
        if not is_pair or max(int(value), int(label)) > 255:
            raise InputError(f"--label-map {pair}: expected VALUE=CLASS with whole numbers, as 1=3")
        if value in values:
            raise InputError(f"--label-map {pair}: {value} has two classes: give it one")
        if int(label) >= num_classes:
            raise InputError(f"--label-map {pair}: choose a class from 0 to {num_classes - 1}")
        values.add(value)
        table[int(value)] = int(label)
    return table


def find_label_maps(input_dir: Path, output_dir: Path) -> dict[str, Path]:
    """{case: label map} of a folder, which must not be one that is written to."""
    for folder in (output_dir, output_dir / "labels"):
        if folder.resolve() == input_dir.resolve():
            raise InputError(
                f"--output-dir {output_dir}: {folder} is the folder of the label maps:"
                " choose another"
            )
    return find_cases(input_dir)


def find_centrelines(folder: Path | None, cases: Iterable[str]) -> dict[str, Path]:
    """The centreline file of every case in a folder; empty without a folder."""
    if folder is None:
        return {}
    centrelines = {case: folder / f"{case}{SUFFIX}" for case in cases}
    for path in centrelines.values():
        read_centreline(path)  # an unreadable file is an error before the first volume
    return centrelines
