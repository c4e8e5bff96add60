"""Whether vessels have the contrast of their own image's aorta, or a painted constant.

    python tests/bench/own_contrast.py --labels LABELS \\
        --images real=CTS reconstruction=REC synthesis=SYN

Prints a JSON line per folder: the HU of the aorta and of the coronaries' lumen (points of at least
1 mm of radius) over the cases, mean and standard deviation, and the lumen's correlation with its
own aorta and with the lumen of the first folder. A decoder that paints vessels by their place alone
has correlations of 0.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from scipy.ndimage import binary_erosion

from tubesynth.metrics.vessel import centreline_in_world, sample_hu
from tubesynth.volume.cases import find_cases
from tubesynth.volume.classes import NINE_CLASSES
from tubesynth.volume.files import read_labels, read_volume
from tubesynth.volume.grid import Volume
from tubesynth.volume.vessels import extract_tokens

MIN_RADIUS_MM = 1.0


def mean_hu(labels: Volume, ct: Volume) -> tuple[float, float]:
    """The mean HU of the aorta without its rim, and of the lumen of the wider coronaries."""
    assert NINE_CLASSES.aorta is not None and labels.shape == ct.shape
    aorta = binary_erosion(labels.array == NINE_CLASSES.aorta, iterations=2)
    tokens = extract_tokens(labels.array == NINE_CLASSES.vessel, labels.affine)
    position, _ = centreline_in_world(tokens, labels)
    lumen = sample_hu(ct, position[tokens.radius_mm >= MIN_RADIUS_MM])
    return float(ct.array[aorta].mean()), float(np.nanmean(lumen))


def own_contrast(label_dir: Path, image_dir: Path, first: np.ndarray | None = None) -> dict:
    """The scores of a folder; lumen_hu_values are those of its cases, for `first` of the next."""
    labels = find_cases(label_dir)
    images = {case.removesuffix("_s0"): path for case, path in find_cases(image_dir).items()}
    pairs = [mean_hu(read_labels(labels[c]), read_volume(path)) for c, path in images.items()]
    aorta, lumen = np.array(pairs).T
    row = {"images": image_dir.name, "cases": len(pairs)}
    for key, values in (("aorta_hu", aorta), ("lumen_hu", lumen)):
        row |= {key: round(values.mean(), 1), f"{key}_sd": round(values.std(ddof=1), 1)}
    row["correlation"] = round(np.corrcoef(aorta, lumen)[0, 1], 3)
    row["correlation_with_first"] = round(
        np.corrcoef(lumen if first is None else first, lumen)[0, 1], 3
    )
    return row | {"lumen_hu_values": lumen}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--images", nargs="+", required=True, metavar="NAME=DIR")
    args = parser.parse_args()
    first = None
    for name, folder in (item.split("=", 1) for item in args.images):
        row = own_contrast(args.labels, Path(folder), first)
        lumen = row.pop("lumen_hu_values")
        first = lumen if first is None else first
        print(json.dumps(row | {"images": name}))


if __name__ == "__main__":
    main()
