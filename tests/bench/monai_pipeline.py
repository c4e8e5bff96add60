"""The peer's side of monai_data.py: MONAI's PersistentDataset and DataLoader on the same files.

Runs in an environment of its own that holds monai, torch and nibabel (and not this package: of it
only parts/measure.py is used, by path). Transforms are those that a MONAI project
with a persistent cache uses for CT with labels; random transforms come after the cached ones.
"""

import argparse
import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path

# Entries of the cache are MetaTensors, which torch's safe loading refuses since 2.6.
os.environ.setdefault("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")

import torch
from monai import transforms as mt
from monai.data import DataLoader, PersistentDataset

NUM_CLASSES = 9


def ruler():
    path = Path(__file__).parent / "parts" / "measure.py"
    spec = importlib.util.spec_from_file_location("measure", path)
    module = sys.modules["measure"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cached_transforms(args) -> list:
    both = ["image", "label"]
    spline = isinstance(args.order, int)  # by SciPy, which has its own names for the same padding
    interpolation = {"mode": (args.order, "nearest")}
    interpolation["padding_mode"] = ("nearest" if spline else "border", "border")
    return [
        mt.LoadImaged(both),
        mt.EnsureChannelFirstd(both),
        mt.Orientationd(both, "RAS"),
        mt.Spacingd(both, args.spacing, **interpolation),
        mt.ResizeWithPadOrCropd(both, args.resolution),
        mt.ScaleIntensityRanged("image", -1000, 1000, 0, 1, clip=True),
    ]


def random_transforms(args) -> list:
    both = ["image", "label"]
    steps = [mt.RandSpatialCropd(both, args.crop, random_size=False)] if args.case == "crop" else []
    steps += [mt.RandFlipd(both, prob=0.5, spatial_axis=axis) for axis in range(3)]
    steps += [
        mt.RandRotate90d(both, prob=0.1, spatial_axes=(0, 1)),  # the plane that keeps the shape
        mt.RandScaleIntensityd("image", factors=0.1, prob=0.1),
        mt.RandShiftIntensityd("image", offsets=0.05, prob=0.1),
    ]
    if args.case == "one_hot":
        steps.append(
            mt.AsDiscreted("label", to_onehot=NUM_CLASSES, dtype=getattr(torch, args.one_hot))
        )
    return steps


def main() -> None:
    args = parse()
    measure = ruler()
    images = sorted((args.data / "training" / "images").iterdir())[: args.volumes]
    labels = args.data / "training" / "labels"
    items = [
        {"image": str(path), "label": str(labels / f"{path.name.split('.')[0]}.label.nii.gz")}
        for path in images
    ]
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(dir=args.cache_dir) as cache:
        dataset = PersistentDataset(
            items, mt.Compose(cached_transforms(args) + random_transforms(args)), cache
        )
        # persistent workers: the time to start them is not part of a warm epoch
        loader = DataLoader(
            dataset,
            batch_size=1,
            shuffle=True,
            num_workers=args.workers,
            persistent_workers=args.workers > 0 and args.case != "cold",
        )

        def empty():
            shutil.rmtree(cache)
            Path(cache).mkdir()

        def epoch():
            for batch in loader:
                batch["image"].shape, batch["label"].shape

        if args.case != "cold":
            epoch()  # fills the cache
        measured = measure.measure(epoch, args.repeats, empty if args.case == "cold" else None)
        bytes_per_volume = sum(f.stat().st_size for f in Path(cache).iterdir()) / len(items)
    more = {"workers": args.workers, "threads": torch.get_num_threads(), "device": "cpu"}
    shape = args.crop if args.case == "crop" else args.resolution
    size = f"{len(items)} x {'x'.join(map(str, shape))}"
    more["cache_mb"] = round(bytes_per_volume / 1e6, 2)
    measure.show("data", args.case, measure.result(measured, size, **more))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=["whole", "crop", "one_hot", "cold"], required=True)
    parser.add_argument("--data", type=Path, required=True, help="holds training/images, labels")
    parser.add_argument("--cache-dir", type=Path, required=True)
    parser.add_argument("--volumes", type=int, required=True)
    parser.add_argument("--resolution", type=int, nargs=3, required=True)
    parser.add_argument("--spacing", type=float, nargs=3, required=True)
    parser.add_argument("--crop", type=int, nargs=3, required=True)
    parser.add_argument("--one-hot", choices=["float32", "uint8"], default="float32")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--order", type=lambda text: int(text) if text.isdigit() else text, default=3
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
