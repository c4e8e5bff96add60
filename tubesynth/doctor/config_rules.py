"""Rules on a config and this machine: weights, cache, memory, device, batches and checkpoints.

Each rule takes a `PlannedRun`: the config and the cases that it would be trained on.
"""

import math
import os
import shutil
from dataclasses import replace
from functools import cached_property
from itertools import product
from pathlib import Path

import torch

from tubesynth.build.base_models import STAGE_OF, BaseModels, latent_sizes, open_base_models
from tubesynth.build.preprocessing import preprocessing_of
from tubesynth.config.length import (
    PEAK_FLOPS,
    REACHED_SHARES,
    num_steps,
    samples_per_step,
    seconds_per_step,
)
from tubesynth.config.schema import AutoencoderConfig, Config, Stage1Config, Stage2Config
from tubesynth.data.latents import LATENTS
from tubesynth.data.layout import Split
from tubesynth.data.store import Store
from tubesynth.data.volumes import VOLUMES, stored_volume_key
from tubesynth.doctor.findings import Results, error, info, warning
from tubesynth.doctor.training_memory import Estimate, estimate
from tubesynth.runtime.errors import InputError
from tubesynth.runtime.memory import total_bytes
from tubesynth.runtime.precision import resolved
from tubesynth.training.perceptual import require_perceptual
from tubesynth.training.warnings import config_warnings

MAX_SHARE = 0.9  # of free disk or memory
BYTES_PER_VOXEL = 3  # int16 image and uint8 label


class PlannedRun:
    """A config and the cases that it would be trained on."""

    def __init__(self, config: Config, splits: list[Split]):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        precision = resolved(config.train.precision, self.device)
        self.config = replace(config, train=replace(config.train, precision=precision))
        self.cases = [case for split in splits for case in split.cases]
        self.training = sum(len(split.cases) for split in splits if split.name == "training")

    @cached_property
    def base_models(self) -> BaseModels:
        return open_base_models(self.config)

    @property
    def latent_sizes(self) -> AutoencoderConfig:
        """The autoencoder of the latents; the published sizes where its checkpoint is missing."""
        return latent_sizes(self.config, self.base_models)

    @cached_property
    def estimate(self) -> Estimate:
        return estimate(self.config, self.latent_sizes, self.device.type)


def weights(plan: PlannedRun) -> Results:
    """A file of weights is missing, or does not fit the config: train or name another."""
    config, models = plan.config, plan.base_models
    for problem in models.problems:
        yield error(problem)
    for key, checkpoint in zip(STAGE_OF, (models.autoencoder, models.base), strict=True):
        if checkpoint and checkpoint.config.data.spacing != config.data.spacing:
            yield warning(
                f"{key}: {checkpoint.path} was trained on voxels of"
                f" {checkpoint.config.data.spacing} mm, data.spacing is {config.data.spacing}"
            )
    if isinstance(config, Stage1Config):
        try:
            require_perceptual(config.losses)
        except InputError as problem:
            yield error(str(problem))


def settings(plan: PlannedRun) -> Results:
    """The run does not read a setting: leave it out, or set what the message names."""
    yield from map(warning, config_warnings(plan.config))


def disk(plan: PlannedRun) -> Results:
    """The cache does not fit on the disk: free space, or set data.cache_dir to another disk."""
    data = plan.config.data
    folder = _existing(Path(data.cache_dir))
    if not os.access(folder, os.W_OK):
        yield error(f"data.cache_dir: {folder} cannot be written; choose another folder")
        return
    free = shutil.disk_usage(folder).free
    missing, stored = _cache_bytes(plan)
    text = f"cache in {data.cache_dir}: {size_text(missing + stored)}"
    text += f", {size_text(stored)} of it built" if stored else ""
    text += f"; {size_text(free)} free"
    if missing > free:
        yield error(f"{text}; free {size_text(missing - free)} or set data.cache_dir elsewhere")
    elif missing > MAX_SHARE * free:
        yield warning(f"{text}; little is left, free some or set data.cache_dir elsewhere")
    else:
        yield info(text)


def length(plan: PlannedRun) -> Results:
    """The computed length of the training: fewer epochs or a smaller model where it is too long."""
    flops, steps = plan.estimate.flops, num_steps(plan.config, plan.training)
    if steps == 0:  # no data yet
        yield info(f"a step is {flops / 1e12:.3g} TFLOP")
        return
    low, high = (steps * s / 3600 for s in seconds_per_step(flops, PEAK_FLOPS["H100"]))
    hours = f"{low:.2g} to {high:.2g} hours" if high >= 0.01 else "less than a minute"
    yield info(
        f"{steps} steps of {flops / 1e12:.3g} TFLOP: {hours} on one H100 in 16 bits, computed at"
        f" {REACHED_SHARES[0]:.0%} to {REACHED_SHARES[1]:.0%} of its peak, without validation"
    )


def checkpoints(plan: PlannedRun) -> Results:
    """The checkpoints do not fit on the disk: keep fewer, or give --run-dir on another disk."""
    folder = _existing(Path("runs"))
    free = shutil.disk_usage(folder).free
    size, train = plan.estimate.checkpoint, plan.config.train
    periodic = train.epochs // train.save_every if train.keep is None else train.keep
    files = periodic + 2  # and last.ckpt and best.ckpt
    text = f"{files} checkpoints of about {size_text(size)} in runs/; {size_text(free)} free"
    if size * (files + 1) > free:  # one more while it is written
        yield warning(f"{text}; free some, set a lower train.keep, or give --run-dir elsewhere")
    else:
        yield info(text)


def memory(plan: PlannedRun) -> Results:
    """Training does not fit into memory: tubesynth plan CONFIG --fit GB names settings that do."""
    config, needed = plan.config, plan.estimate
    device, total = _device_memory()
    text = (
        f"training takes about {size_text(needed.training)} (estimate:"
        f" {needed.parameters / 1e6:.1f} M parameters, batch {config.data.batch_size});"
        f" {device} has {size_text(total)}"
    )
    if needed.training > MAX_SHARE * total:
        yield warning(
            f"{text}; tubesynth plan CONFIG --fit {total / 1e9:.3g} names settings that fit"
        )
    else:
        yield info(text)
    host = total_bytes()
    cases = len(plan.cases) * BYTES_PER_VOXEL * math.prod(config.data.resolution)
    cases *= preprocessing_of(config).num_spacings
    if config.data.dataset_type == "cache":
        text = f"data.dataset_type cache keeps {size_text(cases)} in memory; this machine or job"
        text += f" has {size_text(host)}"
        if cases > MAX_SHARE * host:
            yield warning(f"{text}; set data.dataset_type=persistent")
        else:
            yield info(text)


def device(plan: PlannedRun) -> Results:
    """No GPU, or one that is slow at the configured precision: change the GPU or the precision."""
    precision = plan.config.train.precision
    if not torch.cuda.is_available():
        yield warning(
            f"no GPU: training runs on {os.cpu_count()} CPU cores, which is fast enough for small"
            " configs only" + ("; 16-mixed is no faster there" if precision == "16-mixed" else "")
        )
        return
    count = torch.cuda.device_count()
    major, minor = torch.cuda.get_device_capability()
    bf16 = major >= 8
    yield info(
        f"{count} x {torch.cuda.get_device_name()}, compute capability {major}.{minor},"
        f" {'bf16 and 16-bit' if bf16 else '16-bit'} precision"
    )
    if precision == "bf16-mixed" and not bf16:
        yield warning(f"train.precision: {precision} is slow on this GPU; take 16-mixed")


def split_sizes(plan: PlannedRun) -> Results:
    """Fewer training cases than a batch has: lower data.batch_size or train.accumulate."""
    batch = samples_per_step(plan.config)
    if 0 < plan.training < batch:
        yield warning(
            f"data.batch_size x train.accumulate is {batch}, but there are only"
            f" {plan.training} cases; lower them"
        )


RULES = [weights, settings, disk, memory, device, split_sizes, length, checkpoints]


def case_bytes(config: Config, sizes: AutoencoderConfig) -> tuple[int, int]:
    """Bytes in the disk cache of a case's volumes, and of its latents; sizes: of their network."""
    voxels, num_spacings = math.prod(config.data.resolution), preprocessing_of(config).num_spacings
    volumes = latents = 0
    if config.data.dataset_type == "persistent":
        volumes = BYTES_PER_VOXEL * voxels * num_spacings
    if isinstance(config, Stage2Config):
        cells = voxels // 2 ** (len(sizes.channels) * config.dim)
        per_variant = 2 * sizes.embedding_dim * cells + voxels  # float16 latents, uint8 labels
        if config.data.token_step_mm is not None:
            per_variant += 2 * 2 * cells  # float16 vessel fields
        latents = per_variant * config.latents.variants * num_spacings
    return volumes, latents


def _cache_bytes(plan: PlannedRun) -> tuple[int, int]:
    """(bytes still to be written, bytes already stored) of the volumes and latents."""
    config, cases = plan.config, plan.cases
    store, preprocessing = Store(config.data.cache_dir), preprocessing_of(config)
    volumes, of_latents = case_bytes(config, plan.latent_sizes)
    missing = stored = 0
    if volumes:
        for case, spacing_index in product(cases, range(preprocessing.num_spacings)):
            key = stored_volume_key(store, case, preprocessing, spacing_index)
            entry = store.open(VOLUMES, key) if key else None
            stored += entry.size if entry else 0
            missing += 0 if entry else volumes // preprocessing.num_spacings
    if isinstance(config, Stage2Config):
        validation = len(cases) - plan.training  # whose cases have one variant
        expected = of_latents * plan.training
        expected += of_latents // config.latents.variants // preprocessing.num_spacings * validation
        latents = sum(entry.size for entry in store.entries(LATENTS))
        stored += min(latents, expected)  # keys need the autoencoder: all latents count
        missing += max(0, expected - latents)
    return missing, stored


def _device_memory() -> tuple[str, int]:
    if torch.cuda.is_available():
        return "the GPU", torch.cuda.get_device_properties(0).total_memory
    return "this machine or job", total_bytes()


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def size_text(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.{1 if count < 10 * size else 0}f} {unit}"
    return f"{count / 1e3:.0f} kB"
