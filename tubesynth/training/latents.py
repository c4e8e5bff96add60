"""Encoding the data set for stage 2: all ranks together, once, into the disk cache.

An entry's key holds the case's own key, the digest of the autoencoder and the augmentation of its
variant, so another autoencoder or another spacing never meets old latents. No code is looked for:
latents are what a quantizer's `latents` makes of the encoder's output (models/quantizers/).
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from tubesynth.build.base_models import FrozenAutoencoder, require_same_autoencoder
from tubesynth.config.schema import Stage2Config
from tubesynth.data.dataset import VolumeDataset, collate
from tubesynth.data.latents import LatentDataset
from tubesynth.data.store import entry_key
from tubesynth.data.tokens import latent_fields
from tubesynth.data.volumes import LATENTS, volume_key
from tubesynth.models.scale import LatentScale
from tubesynth.runtime import dist
from tubesynth.runtime.seeding import derive
from tubesynth.training.inputs import Volumes, rank_loader, to_device
from tubesynth.volume.vessels import VesselTokens

FORMAT = 3  # raise it when the same case and autoencoder would give other latents


def latent_key(config: Stage2Config, volumes: Volumes, autoencoder: str, case, variant: int) -> str:
    """The key of a case's latents: what decides their bytes. autoencoder: its digest."""
    change = [config.seed, vars(config.data.augment)] if variant else None
    return entry_key(
        format=FORMAT,
        volume=volume_key(volumes.store, case, volumes.preprocessing),
        autoencoder=autoencoder,
        tokens=volumes.tokens.settings if volumes.tokens else None,
        variant=variant,
        augmentation=change,
    )


class Latents:
    """The encoded data set: training draws, validation cases, and the scale of the latents."""

    def __init__(self, config: Stage2Config, volumes: Volumes, device: torch.device):
        self.config, self.volumes, self.device = config, volumes, device
        self.autoencoder = FrozenAutoencoder(config.latents.autoencoder, config)
        self.autoencoder.module.to(device)
        self.training = self._encode(volumes.training, config.latents.variants, "training")
        self.validation = self._encode(volumes.validation, 1, "validation")
        self.scale = LatentScale.from_moments(*self.training.moments())

    def _encode(self, cases, variants: int, split: str) -> LatentDataset:
        """Encode what the cache lacks, this rank's share of it; wait for the others."""
        store = self.volumes.store
        digest = self.autoencoder.digest
        keys = [
            [latent_key(self.config, self.volumes, digest, case, v) for v in range(variants)]
            for case in cases
        ]
        missing = [
            (index, variant)
            for index in range(len(cases))
            for variant in range(variants)
            if store.open(LATENTS, keys[index][variant]) is None
        ]
        dist.barrier()  # all ranks have looked before the first one writes
        mine = missing[dist.rank() :: dist.world_size()]
        quiet = None if dist.is_main() and missing else True
        # Data sets that keep everything in memory are made only where something is to be encoded.
        sources = self._sources(cases, mine)
        for index, variant in tqdm(mine, f"encode {split}", unit="volume", disable=quiet):
            source = sources[variant > 0]
            store.ensure(
                LATENTS,
                keys[index][variant],
                lambda s=source, i=index, v=variant: self._build(s, i, v),
                {
                    "case": cases[index].id,
                    "sources": [str(cases[index].image), str(cases[index].label)],
                    "autoencoder": self.autoencoder.digest,
                    "variant": variant,
                    "volume": volume_key(store, cases[index], self.volumes.preprocessing),
                },
            )
        dist.barrier()
        return LatentDataset(store, [case.id for case in cases], keys, self.config.seed)

    def _sources(self, cases, wanted: list[tuple[int, int]]) -> dict[bool, VolumeDataset]:
        """The cases as they are, and augmented: those of the two that are wanted."""
        augmentations = {False: None, True: self.volumes.augmentation}
        return {
            changed: self.volumes.dataset(cases, augmentation=augmentations[changed])
            for changed in {variant > 0 for _, variant in wanted}
        }

    @torch.no_grad()
    def _build(self, source: VolumeDataset, index: int, variant: int):
        """Variant 0 is the case as it is; the others are drawn from (seed, case, variant)."""
        case = source.cases[index].id
        key = derive(self.config.seed, "variant", case, variant)
        sample = source.sample(index, np.random.default_rng(key) if variant else None)
        batch = to_device(collate([sample]), self.config.data, self.device)
        latent = self.autoencoder.module.encode(batch["image"])[0].float().cpu()
        cells = latent.double().flatten(1)
        moments = [torch.full((len(cells),), cells.shape[1]), cells.sum(1), cells.square().sum(1)]
        arrays = {
            "latent": latent.half().numpy(),
            "label": np.ascontiguousarray(sample["label"]),
            "moments": torch.stack([m.double() for m in moments]).numpy(),
        }
        if "tokens" in sample:
            tokens = VesselTokens(**sample["tokens"])
            arrays["tokens"] = tokens.to_array()
            shape = (*sample["label"].shape, 1)[:3]  # a picture is a volume of one slice
            fields = latent_fields(tokens, shape, sample["spacing"], self.autoencoder.module.factor)
            arrays["fields"] = fields.reshape(2, *latent.shape[1:]).astype(np.float16)
        return arrays, {"spacing": sample["spacing"].tolist()}

    def batches(self, draw: int, end_draw: int) -> Iterator[dict]:
        """This rank's training batches for the global draws [draw, end_draw), on the device."""
        loader = rank_loader(self.training, draw, end_draw, self.config.data, self.device)
        for batch in loader:
            yield self._to_device(batch)

    def validation_batches(self) -> Iterator[tuple[int, dict]]:
        """This rank's share of the validation cases: (index, a batch of one)."""
        for index in range(dist.rank(), len(self.validation), dist.world_size()):
            yield index, self.validation_batch(index)

    def validation_batch(self, index: int) -> dict:
        return self._to_device(collate([self.validation.sample(index)]))

    def _to_device(self, batch: dict) -> dict:
        latent = batch["latent"].to(self.device, non_blocking=True).float()
        moved = {
            "case": batch["case"],
            "latent": self.scale.normalize(latent),
            "label": batch["label"].to(self.device, non_blocking=True),
            "spacing": batch["spacing"][:, : self.config.dim].to(self.device, non_blocking=True),
        }
        if "sample_index" in batch:
            moved["sample_index"] = batch["sample_index"].tolist()
        if "fields" in batch:
            moved["fields"] = batch["fields"].to(self.device, non_blocking=True).float()
        if "tokens" in batch:
            moved["tokens"] = {
                name: values.to(self.device, non_blocking=True)
                for name, values in batch["tokens"].items()
            }
        return moved

    def state(self) -> dict:
        """What makes a stage-2 checkpoint whole: the decoder of its latents, and their scale."""
        return {
            "latent_scale": self.scale.state(),
            "autoencoder": {
                "config": self.autoencoder.plain_config,
                "digest": self.autoencoder.digest,
                "module": self.autoencoder.module.state_dict(),
            },
        }

    def check_resumed(self, state: dict, path: Path) -> None:
        """InputError where a checkpoint was trained on the latents of another autoencoder."""
        require_same_autoencoder(self.autoencoder.digest, state, path)
        self.scale = LatentScale(**state["latent_scale"])
