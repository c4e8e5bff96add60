"""A data set for small machines: boxes around the coronaries, cut from procedural phantoms.

    python tests/bench/coronary_boxes.py --output-dir bench/boxes

Whole hearts at the voxel size that thin vessels need are too large to train on without a GPU. Each
box of 32 x 32 x 24 voxels of 1.2 mm has its middle near a point of a coronary's centreline.
"""

import argparse
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tubesynth.phantom.anatomy import make_phantom
from tubesynth.volume.files import write_volume
from tubesynth.volume.grid import Volume
from tubesynth.volume.vessels import extract_tokens

VESSEL = 8
HEART, SPACING_MM = (96, 96, 72), (1.2, 1.2, 1.2)
BOX, JITTER = np.array([32, 32, 24]), 6  # voxels
BOXES = 4  # of each phantom


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--training", type=int, default=40, help="phantoms")
    parser.add_argument("--validation", type=int, default=8, help="phantoms")
    parser.add_argument("--seed", type=int, default=11)
    args = parser.parse_args()
    for number in tqdm(range(1, args.training + args.validation + 1), unit="phantom"):
        part = "training" if number <= args.training else "validation"
        phantom = make_phantom(args.seed, number, HEART, SPACING_MM)
        random = np.random.default_rng([args.seed, number])
        for index, corner in enumerate(corners(phantom.labels, random)):
            for kind, name, volume, dtype in (
                ("images", "img", phantom.image, "int16"),
                ("labels", "label", phantom.labels, "uint8"),
            ):
                path = args.output_dir / part / kind / f"{number}_{index}.{name}.nii.gz"
                write_volume(path, cut(volume, corner), dtype)


def corners(labels: Volume, random) -> list[np.ndarray]:
    """Where the boxes begin (voxels)."""
    tokens = extract_tokens(labels.array == VESSEL, labels.affine)
    middle = (np.array(labels.shape) - 1) / 2
    chosen = random.choice(len(tokens), BOXES, replace=False)
    points = np.asarray(tokens.position_mm)[chosen] / labels.spacing + middle
    starts = points - BOX / 2 + random.uniform(-JITTER, JITTER, (BOXES, 3))
    return list(np.clip(np.rint(starts).astype(int), 0, np.array(labels.shape) - BOX))


def cut(volume: Volume, corner: np.ndarray) -> Volume:
    affine = volume.affine.copy()
    affine[:3, 3] = volume.to_world(corner)
    return Volume(
        volume.array[tuple(slice(c, c + n) for c, n in zip(corner, BOX, strict=True))], affine
    )


if __name__ == "__main__":
    main()
