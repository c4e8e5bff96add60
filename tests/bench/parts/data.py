"""The data side: warm epochs as the training stages read them, and a cold build of the cache.

Cases, timed over one epoch of batches of one, augmented, on the device and of the type that the
networks take (window, intensity, one-hot included):
  whole    stage 1: image float32 in [0, 1], label uint8
  crop     the same of a random box
  one_hot  image as in whole, label as one-hot classes (B, C, X, Y, Z)
  stage2   what a stage-2 step takes: latents float32, normalized, and one-hot classes
  cold     preprocessing of ImageCAS-sized files (512 x 512 x 206) into an empty cache, all cores
With --stored an epoch ends at the batches of the loader (int16, uint8, float16), as they are copied
to a GPU, on which the conversion takes about a millisecond.
copy_seconds: of copying the batches of an epoch once, which any loader does that makes them.
"""

import shutil
import sys
from contextlib import redirect_stdout
from functools import partial
from itertools import count
from pathlib import Path

from parts.measure import measure, result, significant
from parts.options import GRID, add_device, add_repeats, check_options

from tubesynth.data.pool import cores
from tubesynth.runtime.errors import InputError

CASES = ("whole", "crop", "one_hot", "stage2", "cold")
SCAN_SPACING = (0.35, 0.35, 0.5)
AUGMENT = dict(flip=0.5, rotate90=0.1, intensity=0.1)  # the published settings
VALIDATION_FRACTION = 0.01  # case 2 alone: of N + 1 phantoms N are for training


def add_arguments(parser) -> None:
    add = parser.add_argument
    add("--data-dir", help="folder of phantoms and cache, which are made if missing")
    add("--volumes", type=int, default=16, help="in an epoch")
    add("--resolution", type=int, default=(256, 256, 128), **GRID)
    add("--spacing", type=float, default=(0.7, 0.7, 1.05), **GRID)
    add("--crop", type=int, default=(128, 128, 128), **GRID)
    add("--scans", type=int, default=4, help="files of the cold build")
    add("--scan-resolution", type=int, default=(512, 512, 206), **GRID)
    add("--one-hot", choices=("float32", "uint8"), default="float32", help="type of the classes")
    add("--stored", action="store_true", help="stop before window, intensity and one-hot")
    add("--workers", type=int, nargs="+", default=[0, 2], help="of the loader: one line each")
    add_repeats(parser, 5, "epochs")
    add_device(parser)


def check(args) -> None:
    check_options(args, "volumes", "scans", "repeats")
    if min(args.workers) < 0:
        raise InputError(f"--workers {min(args.workers)}: must not be negative")
    if any(c > n for c, n in zip(args.crop, args.resolution, strict=True)):
        raise InputError(f"--crop {args.crop}: must fit into --resolution {args.resolution}")


def lines(case: str, args) -> list[tuple[int]]:
    """The workers of each line; a cold build takes every core."""
    return [(workers,) for workers in ([0] if case == "cold" else args.workers)]


def prepare(case: str, args) -> None:
    """Everything that is not timed: phantoms, the warm cache, latents."""
    if case == "cold":
        make_phantoms(args.data_dir / "scans", args.scans, args.scan_resolution, SCAN_SPACING)
        return
    make_phantoms(args.data_dir / "phantoms", args.volumes, args.resolution, args.spacing)
    volumes = open_volumes(args, 0)
    volumes.build_cache()
    if case == "stage2":
        import torch

        open_latents(args, volumes, 0, torch.device(args.device))


def run_case(case: str, args, workers: int) -> dict:
    """One case, measured: its JSON object."""
    import torch
    from parts.turns import device_of, finished, result_on

    from tubesynth.models.spade import one_hot
    from tubesynth.training.inputs import rank_loader

    if case == "cold":
        return cold(args)
    device = device_of(args.device)
    volumes = open_volumes(args, workers, args.crop if case == "crop" else None)
    latents = open_latents(args, volumes, workers, device) if case == "stage2" else None
    if args.stored:
        data = volumes.data
        source = volumes.dataset(volumes.training, data.crop, volumes.augmentation)
        source = latents.training if latents else source
        batches = partial(rank_loader, source, data=data, device=device)
    else:
        batches = latents.batches if latents else partial(volumes.batches, device=device)
    with_classes = case in ("one_hot", "stage2") and not args.stored
    dtype, epochs, forms = getattr(torch, args.one_hot), count(), {}

    def epoch():
        first = next(epochs) * args.volumes  # as training counts its sample indices
        for batch in batches(first, first + args.volumes):
            if with_classes:
                batch["one_hot"] = one_hot(batch["label"], volumes.labels.num_classes, dtype)
            forms.update((k, (v.shape, v.dtype)) for k, v in batch.items() if torch.is_tensor(v))

    def copies():
        for _ in range(args.volumes):
            for tensor in filled:
                tensor.clone()

    measured = measure(finished(epoch, device), args.repeats)
    filled = [torch.ones(shape, dtype=kind, device=device) for shape, kind in forms.values()]
    copied = measure(finished(copies, device), args.repeats)
    shape = args.crop if case == "crop" else args.resolution
    return result_on(
        device,
        measured,
        f"{args.volumes} x {'x'.join(map(str, shape))}",
        workers=workers,
        stored=args.stored,
        **({"one_hot": args.one_hot} if with_classes else {}),
        volumes_per_second=significant(args.volumes / measured.seconds),
        copy_seconds=significant(copied.seconds),
        over_copy=significant(measured.seconds / copied.seconds, 3),
        cache_mb=cache_mb(volumes.store, "latents" if case == "stage2" else "volumes"),
    )


def cold(args) -> dict:
    """Files to cache entries, with every core; the cache is emptied before each repeat."""
    from tubesynth.data.preprocessing import Preprocessing
    from tubesynth.data.store import Store
    from tubesynth.data.volumes import build_volumes
    from tubesynth.volume.cases import pair_cases

    root = args.data_dir / "scans" / "training"
    cases = pair_cases(root / "images", root / "labels")[: args.scans]
    store = Store(args.data_dir / "cold")
    preprocessing = Preprocessing(args.resolution, args.spacing)

    def empty():
        shutil.rmtree(store.root, ignore_errors=True)

    measured = measure(partial(build_volumes, store, cases, preprocessing), args.repeats, empty)
    cached_mb = cache_mb(store, "volumes")
    empty()
    scan, grid = ("x".join(map(str, shape)) for shape in (args.scan_resolution, args.resolution))
    return result(
        measured,
        f"{len(cases)} x {scan} to {grid}",
        device="cpu",
        threads=cores(),
        workers=min(cores(), len(cases)),
        seconds_per_volume=significant(measured.seconds / len(cases)),
        cache_mb=cached_mb,
    )


def make_phantoms(folder: Path, cases: int, resolution, spacing) -> None:
    """Writes those of `cases` training phantoms and one for validation that are missing."""
    from tubesynth.phantom import __main__ as phantom

    def numbers(values):
        return [f"{value:g}" for value in values]

    held_out = ["--validation-fraction", str(VALIDATION_FRACTION)]
    size = ["--resolution", *numbers(resolution), "--spacing", *numbers(spacing)]
    amount = ["--cases", str(cases + 1), "--workers", str(cores())]
    with redirect_stdout(sys.stderr):  # lines of JSON alone go to stdout
        phantom.main(["--output-dir", str(folder), *amount, *size, *held_out])


def data_config(args, workers: int, crop=None):
    from tubesynth.config.schema import AugmentConfig, DataConfig

    return DataConfig(
        root=str(args.data_dir / "phantoms"),
        resolution=list(args.resolution),
        spacing=list(args.spacing),
        cache_dir=str(args.data_dir / "cache"),
        num_workers=workers,
        crop=crop and list(crop),
        augment=AugmentConfig(**AUGMENT),
    )


def open_volumes(args, workers: int, crop=None):
    """The phantoms as stage 1 has them."""
    from tubesynth.config.schema import Stage1Config
    from tubesynth.training.inputs import Volumes

    volumes = Volumes.find(Stage1Config(stage=1, data=data_config(args, workers, crop)))
    volumes.training = volumes.training[: args.volumes]
    return volumes


def open_latents(args, volumes, workers: int, device):
    """The phantoms as stage 2 has them, in two variants a case, encoded where they are missing.

    By an autoencoder of the published latent (f4, 8 channels) that is narrow and was never trained:
    neither matters to how fast its latents are read.
    """
    import torch

    from tubesynth.build.base_models import require_base_models
    from tubesynth.build.checkpoint import Checkpoint, PhaseState
    from tubesynth.build.networks import build_autoencoder
    from tubesynth.config.schema import AutoencoderConfig, LatentConfig, Stage1Config, Stage2Config
    from tubesynth.training.latents import encode_data_set

    path = args.data_dir / "narrow_autoencoder.ckpt"
    data = data_config(args, workers)
    if not path.is_file():
        narrow = AutoencoderConfig([8, 8], [8, 8], num_residual_layers=1, codebook_size=16)
        config = Stage1Config(stage=1, data=data, autoencoder=narrow)
        torch.manual_seed(0)
        weights = PhaseState(build_autoencoder(config).state_dict(), None, {}, {})
        Checkpoint(config, None, None, {"autoencoder": weights}).save(path)
    latents = LatentConfig(autoencoder=str(path), variants=2)
    config = Stage2Config(stage=2, data=data, latents=latents)
    return encode_data_set(config, volumes, require_base_models(config).autoencoder, device)


def cache_mb(store, kind: str) -> float:
    """MB (1e6 bytes) of an entry, on average."""
    sizes = [entry.size for entry in store.entries(kind)]
    return round(sum(sizes) / len(sizes) / 1e6, 2)
