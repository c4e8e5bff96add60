"""The data set of stages 2 and 3, encoded by a frozen autoencoder into the disk cache.

An entry's key holds the case's own key, the digest of the autoencoder and the augmentation of its
variant, so latents of another autoencoder or spacing are never read. The latents come from the
quantizer's `latents` method, before any code is chosen (models/quantizers/).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from tubesynth.build.checkpoint import AutoencoderState, Checkpoint
from tubesynth.conditioning.conditions import case_conditions, conditions_to_device
from tubesynth.config.schema import Stage2Config
from tubesynth.data.dataset import VolumeDataset, collate
from tubesynth.data.latents import LatentDataset
from tubesynth.data.store import entry_key
from tubesynth.data.volumes import LATENTS, entry_meta
from tubesynth.models.scale import LatentScale
from tubesynth.models.vqvae import VQVAE
from tubesynth.runtime import dist
from tubesynth.runtime.log import progress
from tubesynth.runtime.seeding import derive
from tubesynth.runtime.stop_signal import STARTS_AGAIN, kept
from tubesynth.training.inputs import Volumes, rank_loader, to_device
from tubesynth.volume.anatomy import Description, Ranges, describe
from tubesynth.volume.cases import Case
from tubesynth.volume.classes import LabelScheme
from tubesynth.volume.vessels import VesselTokens

MAX_DESCRIBED = 200  # label maps that condition_ranges measures, of 0.05 s each
FORMAT = 3  # raise it when the same case and autoencoder would give other latents


def latent_key(
    config: Stage2Config, volumes: Volumes, autoencoder: str, volume_keys: list[str], variant: int
) -> str:
    """The store's key of a case's latents; autoencoder: the digest of its weights; volume_keys: of
    the case's volumes, one for each spacing.

    Where a case has D spacings, variant v has spacing v % D, and the first D no augmentation.
    """
    num_spacings, augmentation = len(volume_keys), None
    if variant >= num_spacings:
        settings = dict(vars(config.data.augment))
        if settings["convention"] == "per_axis":
            del settings["convention"]  # keys from before there was another
        augmentation = [config.seed, settings]
    return entry_key(
        format=FORMAT,
        volume=volume_keys[variant % num_spacings],
        autoencoder=autoencoder,
        tokens=volumes.tokens.settings if volumes.tokens else None,
        variant=variant,
        augmentation=augmentation,
    )


@dataclass
class EncodedSplits:
    """The encoded data set of stages 2 and 3 in the disk cache, and its batches on a device."""

    config: Stage2Config
    device: torch.device
    autoencoder: VQVAE  # evaluation mode, without gradients, on the device
    autoencoder_state: AutoencoderState  # of the same weights
    training: LatentDataset
    validation: LatentDataset
    scale: LatentScale
    conditions: Ranges | None  # of the training set; None without label maps

    def batches(self, start: int, end: int) -> Iterator[dict]:
        """This rank's training batches for the global sample indices [start, end)."""
        for batch in rank_loader(self.training, start, end, self.config.data, self.device):
            yield self._to_device(batch)

    def validation_batches(self) -> Iterator[tuple[int, dict]]:
        """This rank's share of the validation cases: (index, a batch of one)."""
        indices = range(dist.rank(), len(self.validation), dist.world_size())
        for index in progress(indices, "validation", len(indices), bar=False):
            yield index, self.validation_batch(index)

    def validation_batch(self, index: int) -> dict:
        return self._to_device(collate([self.validation.sample(index)]))

    def _to_device(self, batch: dict) -> dict:
        """A batch on the device: normalized latents (B, C, x, ...) float32 and their conditions."""
        latent = batch["latent"].to(self.device, non_blocking=True).float()
        on_device = {
            "case": batch["case"],
            "latent": self.scale.normalize(latent),
            **conditions_to_device(batch, self.device),
            "spacing": batch["spacing"][:, : self.config.dim].to(self.device, non_blocking=True),
        }
        if "sample_index" in batch:
            on_device["sample_index"] = batch["sample_index"].tolist()
        return on_device


def encode_data_set(
    config: Stage2Config,
    volumes: Volumes,
    checkpoint: Checkpoint,
    device: torch.device,
    scale: LatentScale | None = None,
    conditions: Ranges | None = None,
) -> EncodedSplits:
    """Encode every case that the disk cache lacks; all ranks share the work, then wait.

    checkpoint: the file of latents.autoencoder. scale: that of a resumed run or of the base model;
    conditions: those of a resumed run. By default both are computed from the training set.
    """
    state = checkpoint.trained_autoencoder
    autoencoder = state.restore().to(device)
    encoder = LatentEncoder(config, volumes, autoencoder, state.digest, device)
    variants = config.latents.variants * volumes.preprocessing.num_spacings
    training = encoder.encode(volumes.training, variants, "training")
    if conditions is None and volumes.has_labels:
        conditions = condition_ranges(training, config.labels)
    return EncodedSplits(
        config,
        device,
        autoencoder,
        AutoencoderState(state.config, state.digest, autoencoder.state_dict()),
        training,
        encoder.encode(volumes.validation, 1, "validation"),
        (scale or _latent_scale(config, training, autoencoder.embedding_dim)).to(device),
        conditions,
    )


def _latent_scale(config: Stage2Config, training: LatentDataset, channels: int) -> LatentScale:
    """That of the config, or that of the training set."""
    mean, factor = config.latents.mean, config.latents.scaling_factor
    if mean is None or factor is None:
        return LatentScale.from_moments(*training.moments())
    return LatentScale.fixed(mean, factor, channels)


def condition_ranges(training: LatentDataset, scheme: LabelScheme) -> Ranges:
    """What the label maps of the training set are like, of all variants; ranks share the work."""
    entries = [
        (case, variant) for case, keys in enumerate(training.keys) for variant in range(len(keys))
    ]
    chosen = entries[:: -(-len(entries) // MAX_DESCRIBED)]
    share = chosen[dist.rank() :: dist.world_size()]

    def describe_each() -> list[Description]:
        rows = []
        for case, variant in progress(share, "conditions", len(share)):
            sample = training.sample(case, variant)
            tokens = VesselTokens(**sample["tokens"]) if "tokens" in sample else None
            rows.append(describe(sample["label"], sample["spacing"], tokens, scheme))
        return rows

    rows = dist.interruptible(describe_each, f"no step was made; {STARTS_AGAIN}")
    return Ranges.of(dist.gather_rows(rows))


@dataclass
class LatentEncoder:
    """Encodes cases into the store; an entry's key holds everything that decides its bytes."""

    config: Stage2Config
    volumes: Volumes
    autoencoder: VQVAE
    digest: str
    device: torch.device

    def encode(self, cases: list[Case], variants: int, split: str) -> LatentDataset:
        """Encode this rank's share of the cases that the store lacks; wait for the other ranks."""
        keys = dist.interruptible(
            lambda: self._encode_share(cases, variants, split),
            kept("the encoded cases", self.volumes.store.root),
        )
        case_ids = [case.id for case in cases]
        return LatentDataset(self.volumes.store, case_ids, keys, self.config.seed)

    def _encode_share(self, cases: list[Case], variants: int, split: str) -> list[list[str]]:
        """The keys of each case, one per variant, after this rank's share of them is encoded."""
        volume_keys = [
            self.volumes.keys(case) for case in progress(cases, "keys of latents", len(cases))
        ]
        keys = [
            [
                latent_key(self.config, self.volumes, self.digest, of_case, variant)
                for variant in range(variants)
            ]
            for of_case in volume_keys
        ]
        entries = [(index, variant) for index in range(len(cases)) for variant in range(variants)]
        share = entries[dist.rank() :: dist.world_size()]
        self._encode_entries(
            cases,
            volume_keys,
            keys,
            [
                (index, variant)
                for index, variant in progress(share, "stored latents", len(share))
                if self.volumes.store.checked(LATENTS, keys[index][variant]) is None
            ],
            split,
        )
        return keys

    def _encode_entries(
        self,
        cases: list[Case],
        volume_keys: list[list[str]],
        keys: list[list[str]],
        missing: list[tuple[int, int]],
        split: str,
    ) -> None:
        store = self.volumes.store
        num_spacings = self.volumes.preprocessing.num_spacings
        sources = {
            augmented: self.volumes.dataset(
                cases,
                augmentation=self.volumes.augmentation if augmented else None,
                image_fields=False,
            )
            for augmented in {variant >= num_spacings for _, variant in missing}
        }
        for index, variant in progress(missing, f"encode {split}", len(missing), "volume"):
            source = sources[variant >= num_spacings]
            store.ensure(
                LATENTS,
                keys[index][variant],
                lambda s=source, i=index, v=variant: self._encode_case(s, i, v),
                entry_meta(
                    cases[index],
                    autoencoder=self.digest,
                    variant=variant,
                    volume=volume_keys[index][variant % num_spacings],
                ),
            )

    @torch.no_grad()
    def _encode_case(
        self, source: VolumeDataset, index: int, variant: int
    ) -> tuple[dict[str, np.ndarray], dict]:
        """(arrays, metadata) of an entry. The first variant of each spacing is the case without
        augmentation; the random numbers of the others are keyed by (seed, case, variant).
        """
        case = source.cases[index].id
        key = derive(self.config.seed, "variant", case, variant)
        num_spacings = self.volumes.preprocessing.num_spacings
        rng = np.random.default_rng(key) if variant >= num_spacings else None
        sample = source.sample(index, rng, variant % num_spacings)
        batch = to_device(collate([sample]), self.config.data, self.device)
        latent = self.autoencoder.encode(batch["image"])[0].float().cpu()
        # Moments of each channel (3, C) in float64: number of cells, sum, sum of squares.
        cells = latent.double().flatten(1)
        moments = [torch.full((len(cells),), cells.shape[1]), cells.sum(1), cells.square().sum(1)]
        arrays = {
            "latent": latent.half().numpy(),
            "moments": torch.stack([m.double() for m in moments]).numpy(),
        }
        if "label" not in sample:
            return arrays, {"spacing": sample["spacing"].tolist()}
        tokens = VesselTokens(**sample["tokens"]) if "tokens" in sample else None
        factor = self.autoencoder.factor
        conditions = case_conditions(sample["label"], tokens, sample["spacing"], factor)
        arrays["label"] = conditions["label"]
        if tokens is not None:
            arrays["tokens"] = tokens.to_array()
            arrays["fields"] = conditions["fields"].astype(np.float16)
        return arrays, {"spacing": sample["spacing"].tolist()}
