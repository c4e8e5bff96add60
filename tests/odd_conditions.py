"""Label maps unlike those of a training, and how many of them a model would name.

    python tests/odd_conditions.py --training LABELS --ordinary LABELS

Prints how many of the ordinary label maps are named (wrongly), and of the odd ones made from the
first of them.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from scipy.ndimage import binary_dilation, zoom

from tubesynth.metrics.condition import tokens_of
from tubesynth.volume.anatomy import Description, Ranges, describe
from tubesynth.volume.cases import find_cases
from tubesynth.volume.classes import NINE_CLASSES
from tubesynth.volume.files import read_labels
from tubesynth.volume.grid import Volume
from tubesynth.volume.vessels import VesselTokens


def permuted(*order: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda array: np.array(order, np.uint8)[array]


def without(*classes: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda array: np.where(np.isin(array, classes), 0, array)


def scaled(factor: float) -> Callable[[np.ndarray], np.ndarray]:
    """The anatomy at this share of its size, in the middle of the same grid."""

    def scale(array: np.ndarray) -> np.ndarray:
        small, result = zoom(array, factor, order=0), np.zeros_like(array)
        first = [(n - m) // 2 for n, m in zip(array.shape, small.shape, strict=True)]
        place = tuple(slice(max(f, 0), f + m) for f, m in zip(first, small.shape, strict=True))
        inside = tuple(
            slice(max(-f, 0), max(-f, 0) + n)
            for f, n in zip(first, result[place].shape, strict=True)
        )
        result[place] = small[inside]
        return result

    return scale


DISTORTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "empty": np.zeros_like,
    "no aorta": without(6),
    "no aorta and left atrium": without(2, 6),
    "no myocardium": without(1),
    "left and right exchanged": lambda array: array[::-1],
    "front and back exchanged": lambda array: array[:, ::-1],
    "upside down": lambda array: array[:, :, ::-1],
    "axes exchanged": lambda array: array.transpose(1, 0, 2),
    "left and right heart exchanged": permuted(0, 1, 4, 5, 2, 3, 6, 7, 8),
    "classes moved by one": permuted(0, 8, 1, 2, 3, 4, 5, 6, 7),
    "a quarter of the size": scaled(0.25),
    "half of the size": scaled(0.5),
    "one and a half of the size": scaled(1.5),
    "wide vessels": lambda array: np.where(binary_dilation(array == 8, iterations=4), 8, array),
}


def described(labels: Volume, tokens: VesselTokens | None = None) -> Description:
    tokens = tokens_of(labels, NINE_CLASSES) if tokens is None else tokens
    return describe(labels.array, labels.spacing, tokens, NINE_CLASSES)


def odd_conditions(labels: Volume, other: Volume) -> Iterator[tuple[str, Description]]:
    """(name, description) of label maps made from one; other: that of another patient."""
    for name, distort in DISTORTIONS.items():
        array = np.ascontiguousarray(distort(labels.array))
        yield name, described(Volume(array, labels.affine))
    for factor in (0.4, 2.0):
        affine = labels.affine @ np.diag([factor] * 3 + [1])
        yield f"voxels of {factor:g} times the size", described(Volume(labels.array, affine))
    yield "centrelines of another patient", described(labels, tokens_of(other, NINE_CLASSES))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--training", type=Path, required=True)
    parser.add_argument("--ordinary", type=Path, required=True)
    args = parser.parse_args()
    training, ordinary = (
        [read_labels(path) for path in find_cases(folder).values()]
        for folder in (args.training, args.ordinary)
    )
    ranges = Ranges.of(map(described, training))
    named = [ranges.compare(described(labels)).unusual for labels in ordinary]
    print(f"of {len(training)} training label maps; ordinary ones named: {sum(map(bool, named))}")
    print(f"of {len(ordinary)}: {[line for lines in named for line in lines][:5]}")
    counts: dict[str, list[bool]] = {}
    for labels, other in zip(ordinary[:10], ordinary[1:11], strict=True):
        for name, description in odd_conditions(labels, other):
            counts.setdefault(name, []).append(bool(ranges.compare(description).unusual))
    for name, flags in counts.items():
        print(f"{name}: {sum(flags)} of {len(flags)}")


if __name__ == "__main__":
    main()
