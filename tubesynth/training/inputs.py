"""The training and validation cases of a config, and their batches on the device.

The loader reads int16 HU and uint8 labels; to_device applies the HU window and the intensity
augmentation on the device, which gives the model's [0, 1].
"""

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tubesynth.build.preprocessing import preprocessing_of, token_source_of
from tubesynth.conditioning.model_grid import hu_to_unit_image
from tubesynth.config.labels import label_remedy
from tubesynth.config.schema import (
    Config,
    DataConfig,
    SegmenterConfig,
    Stage2Config,
)
from tubesynth.data.augment import Augmentation
from tubesynth.data.dataset import VolumeDataset, collate
from tubesynth.data.layout import SPLITS
from tubesynth.data.loader import Loader
from tubesynth.data.sampler import RankBatchSampler
from tubesynth.data.store import Store
from tubesynth.data.volumes import BuildReport, build_volumes, volume_key
from tubesynth.pictures.panel import render_panel, without_padding
from tubesynth.pictures.tiles import display_window
from tubesynth.runtime import dist
from tubesynth.runtime.errors import InputError
from tubesynth.runtime.log import progress
from tubesynth.runtime.reading import no_such
from tubesynth.runtime.stop_signal import kept
from tubesynth.volume.cases import Case, pair_cases
from tubesynth.volume.intensity import unit_to_hu


def find_splits(config: Config) -> tuple[list[Case], list[Case]]:
    """The training and validation cases of a config, with their label maps.

    Without any folder of label maps the images alone, if the config needs no label maps.
    """
    data, root = config.data, Path(config.data.root)
    if data.image_train_dir is None and not root.is_dir():
        problem = no_such(root, "folder")
        raise InputError(f"data.root: {root}: {problem}: set data.root to the prepared folder")
    folders = [data.folders(split) for split in SPLITS]
    label_folders = [labels for _, labels in folders if labels]
    if data.label_train_dir is None and not any(labels.is_dir() for labels in label_folders):
        if remedy := label_remedy(config):
            labels = label_folders[0] if label_folders else None
            source = f"{labels}: {no_such(labels, 'folder')}" if labels else "data.label_train_dir"
            raise InputError(f"{source}: this config needs label maps: {remedy}")
        folders = [(images, None) for images, _ in folders]
    training, validation = (pair_cases(*pair, data.label_map) for pair in folders)
    return training, validation


def synthetic_cases(config: SegmenterConfig) -> list[Case]:
    """The cases of the output folders of synthesize that a segmenter is trained on."""
    folders = map(Path, config.synthetic)
    return [case for out in folders for case in pair_cases(out, out / "labels")]


def to_device(batch: dict, data: DataConfig, device: torch.device) -> dict:
    """A batch of a loader on the device: image float32 (B, 1, X, ...) in [0, 1] and case ids; for
    labeled cases label uint8 (B, X, ...); for cases with vessel tokens image_fields
    (B, 2, X, ...); for training samples sample indices. The spacing (B, 3) in mm stays on the CPU.
    """
    hu = batch["image"].to(device, non_blocking=True)  # int16 over the bus
    intensity = batch["intensity"].to(device, non_blocking=True)
    on_device = {
        "case": batch["case"],
        "image": hu_to_unit_image(hu, data.hu_window, intensity),
        "spacing": batch["spacing"],
    }
    for name in ("label", "image_fields"):
        if name in batch:
            on_device[name] = batch[name].to(device, non_blocking=True)
    if "sample_index" in batch:
        on_device["sample_index"] = batch["sample_index"].tolist()
    return on_device


class Volumes:
    """The training and validation cases of a config, and their batches."""

    def __init__(self, config: Config, training: list[Case], validation: list[Case]):
        self.data, self.labels = config.data, config.labels
        self.dim, self.seed = config.dim, config.seed
        self.training, self.validation = training, validation
        self.store = Store(config.data.cache_dir)
        self.preprocessing = preprocessing_of(config)
        self.dataset_type = config.data.dataset_type
        if self.dataset_type == "cache" and isinstance(config, Stage2Config):
            self.dataset_type = "default"  # each case is read once, for its latents
        self.tokens = token_source_of(config)

    @classmethod
    def find(cls, config: Config) -> "Volumes":
        """Pair the files of data.root, and of a segmenter's synthetic folders; InputError where an
        image or a label map has no partner.
        """
        training, validation = find_splits(config)
        if isinstance(config, SegmenterConfig):
            training = synthetic_cases(config) + ([] if config.without_real else training)
        return cls(config, training, validation)

    @property
    def has_labels(self) -> bool:
        """Whether the cases have label maps: all or none of them have."""
        return all(case.label is not None for case in self.training + self.validation)

    def keys(self, case: Case) -> list[str]:
        """The keys of a case's volumes in the store, one for each spacing."""
        spacing_indices = range(self.preprocessing.num_spacings)
        return [
            volume_key(self.store, case, self.preprocessing, index) for index in spacing_indices
        ]

    def build_cache(self, workers: int | None = None) -> BuildReport:
        """Resample every case that the disk cache lacks; all ranks share the work, then wait.

        First, the unfinished entries of killed builds are removed.
        """
        if dist.is_main():
            self.store.sweep()
        return dist.interruptible(
            lambda: build_volumes(
                self.store,
                self.training + self.validation,
                self.preprocessing,
                self.tokens,
                workers,
                dist.rank(),
                dist.world_size(),
            ),
            kept("the cases that are built", self.store.root),
        )

    def dataset(
        self, cases: list[Case], crop=None, augmentation=None, image_fields=True
    ) -> VolumeDataset:
        """image_fields: whether samples have them, where the decoder can be conditioned on them."""
        return VolumeDataset(
            cases,
            self.preprocessing,
            self.store,
            self.dataset_type,
            self.seed,
            crop,
            augmentation,
            self.tokens,
            dim=self.dim,
            image_fields=image_fields,
        )

    @property
    def augmentation(self) -> Augmentation:
        return Augmentation(**vars(self.data.augment))

    def batches(self, start: int, end: int, device: torch.device) -> Iterator[dict]:
        """This rank's training batches for the global sample indices [start, end)."""
        dataset = self.dataset(self.training, self.data.crop, self.augmentation)
        for batch in rank_loader(dataset, start, end, self.data, device):
            yield to_device(batch, self.data, device)

    @cached_property
    def validation_set(self) -> VolumeDataset:
        """Whole volumes without augmentation."""
        return self.dataset(self.validation)

    def validation_batches(self, device: torch.device) -> Iterator[dict]:
        """This rank's share of the validation cases, one at a time."""
        indices = range(dist.rank(), len(self.validation), dist.world_size())
        for index in progress(indices, "validation", len(indices), bar=False):
            yield self.validation_batch(index, device)

    def validation_batch(self, index: int, device: torch.device) -> dict:
        return to_device(collate([self.validation_set.sample(index)]), self.data, device)

    def previews(self, count: int, render: Callable[[int], np.ndarray]) -> dict[str, np.ndarray]:
        """{panel name: render(index)} of the first validation cases; {} on ranks above 0."""
        cases = self.validation[:count] if dist.is_main() else []
        return dist.interruptible(
            lambda: {f"validation_{case.id}": render(index) for index, case in enumerate(cases)},
            "in the panels",
        )

    def panel(self, batch: dict, units: dict[str, Tensor]) -> np.ndarray:
        """A panel (H, W, 3) of a one-case batch: its label map and each image (1, 1, X, ...) in
        [0, 1]; "real" is the CT, of which the padding is hatched.
        """
        images = {
            name: unit_to_hu(unit[0, 0].float().clamp(0, 1).cpu().numpy(), self.data.hu_window)
            for name, unit in units.items()
        }
        label = batch["label"][0].cpu().numpy() if "label" in batch else None
        if self.dim == 2:
            images = {name: image[..., None] for name, image in images.items()}
            label = None if label is None else label[..., None]
        images["real"] = without_padding(images["real"])
        return render_panel(
            images,
            tuple(batch["spacing"][0].tolist()),
            label,
            scheme=self.labels,
            title=f"case {batch['case'][0]}",
            window=display_window(self.data.hu_window, self.dim == 2),
        )


def rank_loader(dataset, start: int, end: int, data: DataConfig, device: torch.device) -> Loader:
    """A loader of this rank's batches for the global sample indices [start, end)."""
    sampler = RankBatchSampler(start, end, data.batch_size, dist.rank(), dist.world_size())
    return Loader(dataset, sampler, data.num_workers, pin_memory=device.type == "cuda")
