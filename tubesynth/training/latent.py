"""Stage 2: flow matching or diffusion in the latents of a frozen autoencoder, conditioned on the
label map and the vessels.

training/latents.py encodes the latents before a LatentStage is constructed.
"""

from collections.abc import Iterator
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from tubesynth.build.networks import build_unet
from tubesynth.build.objective import build_objective
from tubesynth.conditioning.conditions import conditions_of, decoder_condition_of
from tubesynth.config.schema import Stage2Config
from tubesynth.generative.objective import Network, published_vessel_weight, vessel_weight
from tubesynth.models.controlnet import ControlledUNet
from tubesynth.models.dropout import UINT32
from tubesynth.models.unet import UNet
from tubesynth.runtime import dist
from tubesynth.runtime.precision import autocast
from tubesynth.runtime.seeding import derive, generator
from tubesynth.training.inputs import Volumes
from tubesynth.training.latents import EncodedSplits
from tubesynth.training.phase import Phase

# Validation uses these times and one fixed noise per case, so that curves are comparable.
VALIDATION_TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)


class LatentStage:
    """Stage 2 for the training loop: its phase, batches, validation and panels."""

    printed_scores: tuple[str, ...] = ("loss",)

    def __init__(
        self,
        config: Stage2Config,
        volumes: Volumes,
        latents: EncodedSplits,
        network: UNet | ControlledUNet | None = None,
    ):
        """network: by default a U-Net with initial weights."""
        self.config, self.volumes, self.latents = config, volumes, latents
        autoencoder, self.device = latents.autoencoder, latents.device
        network = network or build_unet(config, autoencoder.embedding_dim, autoencoder.factor)
        self.unet = network
        self.objective = build_objective(config)
        self.progress_terms: tuple[str, ...] = (self.objective.target,)
        train = config.train
        phase = Phase("unet", network, self.loss, train.learning_rate, train.ema_half_life)
        phase.place(self.device, train)
        self.phases = [phase]

    @property
    def sampled_network(self) -> UNet | ControlledUNet:
        """The network to sample from: averaged weights, where there are any."""
        return cast(UNet | ControlledUNet, self.phases[0].sampled)

    def loss(self, forward: nn.Module, batch: dict) -> dict[str, Tensor]:
        """The mean loss of the objective over a batch, under the name of its regression target."""
        data = batch["latent"]  # (B, C, x, ...)
        noise, t, keep_label = self._random_numbers(data, batch["sample_index"])
        noise = self.objective.pair_noise(noise, data)
        conditions = conditions_of(batch, keep_label, self._keep_vessels(batch["sample_index"]))

        seeds = self._dropout_seeds(batch["sample_index"])

        def network(x_t, t):
            return forward(x_t, t, batch["spacing"], conditions, dropout_seeds=seeds)

        weight = self._weight(batch["label"]) if "label" in batch else None
        per_case = self.objective.loss(network, data, noise, t, weight)
        return {self.objective.target: per_case.mean()}

    def _random_numbers(
        self, data: Tensor, sample_indices: list[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Noise (B, C, x, ...), times (B,) and keep_label (B,) of 0 or 1.

        They are keyed by sample index, so they do not depend on the number of ranks.
        """
        noise, uniform, keep_label = [], [], []
        for sample_index in sample_indices:
            random = generator(self.device, self.config.seed, "flow", sample_index)
            noise.append(torch.randn(data.shape[1:], generator=random, device=self.device))
            time, keep = torch.rand(2, generator=random, device=self.device)
            uniform.append(time)
            keep_label.append((keep >= self.config.objective.label_dropout).float())
        times = self.objective.times(torch.stack(uniform))
        return torch.stack(noise), times, torch.stack(keep_label)

    def _keep_vessels(self, sample_indices: list[int]) -> Tensor:
        """(B,) of 0 or 1, keyed by sample index and independent of keep_label."""
        seed = self.config.seed
        randoms = [generator(self.device, seed, "vessels", index) for index in sample_indices]
        values = [torch.rand((), generator=random, device=self.device) for random in randoms]
        return (torch.stack(values) >= self.config.objective.vessel_dropout).float()

    def _dropout_seeds(self, sample_indices: list[int]) -> Tensor:
        """(B,) int64 below 2^32, keyed by sample index."""
        seeds = [derive(self.config.seed, "dropout", index) & UINT32 for index in sample_indices]
        return torch.tensor(seeds).to(self.device, non_blocking=True)

    def _weight(self, labels: Tensor) -> Tensor | None:
        """Loss weights (B, 1, x, ...), larger on vessels; None for equal weights."""
        objective = self.config.objective
        if objective.vessel_weight == 1:
            return None
        published = objective.vessel_weighting == "published"
        weight_of = published_vessel_weight if published else vessel_weight
        factor = self.latents.autoencoder.factor
        return weight_of(labels, self.config.labels.vessel, factor, objective.vessel_weight)

    def batches(self, start: int, end: int) -> Iterator[dict]:
        return self.latents.batches(start, end)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean loss of the sampled network over the validation cases and VALIDATION_TIMES."""
        total, count = dist.interruptible(self._validation_sums, "in a validation")
        total, count = dist.sum_over_ranks(total, count)
        return {"loss": total / count}

    def _validation_sums(self) -> tuple[float, int]:
        """The sum and the number of the losses of this rank's validation cases."""
        net = self.sampled_network
        total, count = 0.0, 0
        training = net.training
        net.eval()
        for index, batch in self.latents.validation_batches():
            random = generator(self.device, self.config.seed, "validation", index)
            data = batch["latent"]
            noise = torch.randn(data.shape, generator=random, device=self.device)
            weight = self._weight(batch["label"]) if "label" in batch else None
            with autocast(self.device, self.config.train.precision):
                network = self._conditioned(net, batch)
                for time in VALIDATION_TIMES:
                    t = torch.full((len(data),), time, device=self.device)
                    total += self.objective.loss(network, data, noise, t, weight).mean().item()
                    count += 1
        net.train(training)
        return total, count

    def _conditioned(self, net: UNet | ControlledUNet, batch: dict) -> Network:
        """The network as a function of (x, t), with the conditions of a batch computed once."""
        conditions = net.cache_conditions(
            conditions_of(batch), batch["latent"].shape[2:], batch["spacing"]
        )
        return lambda x, t: net(x, t, batch["spacing"], conditions)

    @torch.no_grad()
    def preview(self) -> dict:
        """Panels of the first validation cases, each synthesized from the same noise every time."""
        return self.volumes.previews(self.config.train.panel_cases, self._panel)

    def _panel(self, index: int) -> np.ndarray:
        net = self.sampled_network
        batch = self.latents.validation_batch(index)
        random = generator(self.device, self.config.seed, "preview", index)

        def normal() -> Tensor:
            return torch.randn(batch["latent"].shape, generator=random, device=self.device)

        training = net.training
        net.eval()
        real = self.volumes.validation_batch(index, self.device)
        with autocast(self.device, self.config.train.precision):
            network = self._conditioned(net, batch)
            latents, _ = self.objective.sample(network, normal(), self.config.sampling, normal)
            synthesis = self.latents.autoencoder.decode(
                self.latents.scale.restore(latents), condition=decoder_condition_of(real)
            )
        net.train(training)
        pictures = {"real": real["image"], "synthesis": synthesis}
        return self.volumes.panel(real, pictures)
