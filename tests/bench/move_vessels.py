"""Writes shifted centrelines of label maps, to test whether a model's vessels follow them.

    python tests/bench/move_vessels.py --labels bench/boxes/validation/labels --by 0 -6 0 \\
        --output-dir bench/moved
    python -m tubesynth.synthesize --model MODEL --input-dir bench/boxes/validation/labels \\
        --centrelines bench/moved --output-dir bench/moved_ct

MODEL is one that was trained with unet.label_map_vessels=false.
"""

import argparse
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tubesynth.volume.cases import find_cases
from tubesynth.volume.centreline_file import SUFFIX, Branch, write_centreline
from tubesynth.volume.files import read_labels
from tubesynth.volume.vessels import extract_tokens

VESSEL = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--by", type=float, nargs=3, required=True, help="mm along R, A, S")
    parser.add_argument("--least-radius", type=float, default=1.5, help="mm, of the moved vessels")
    args = parser.parse_args()
    for case, path in tqdm(find_cases(args.labels).items(), unit="case"):
        labels = read_labels(path)
        tokens = extract_tokens(labels.array == VESSEL, labels.affine)
        axes = labels.affine[:3, :3] / labels.spacing
        world = labels.center_mm + tokens.position_mm @ axes.T + np.array(args.by)
        points = np.column_stack([world, np.maximum(tokens.radius_mm, args.least_radius)])
        branches = [
            Branch(str(number), None, points[tokens.branch == number])
            for number in np.unique(tokens.branch)
            if (tokens.branch == number).sum() > 1
        ]
        write_centreline(args.output_dir / f"{case}{SUFFIX}", branches)


if __name__ == "__main__":
    main()
