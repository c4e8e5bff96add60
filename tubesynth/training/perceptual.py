"""The perceptual loss of stage 1: a frozen network from local files, on slices of three planes."""

from pathlib import Path

import torch
from torch import Tensor

from tubesynth.config.schema import AutoencoderLossConfig, uses_perceptual
from tubesynth.losses.autoencoder import perceptual_loss
from tubesynth.models.perceptual import load_perceptual
from tubesynth.runtime.errors import InputError
from tubesynth.runtime.log import logger
from tubesynth.runtime.seeding import generator
from tubesynth.volume.digest import file_digest


def require_perceptual(losses: AutoencoderLossConfig) -> None:
    """InputError where the files of the loss's network are no such network."""
    if uses_perceptual(losses):
        try:
            load_perceptual(losses.perceptual_files, losses.perceptual_rescale)
        except InputError as error:
            raise InputError(f"losses.perceptual_files: {error}") from error


class Perceptual:
    """The unweighted loss of an image and its reference, both (B, 1, X, ...).

    Random slices are keyed by sample index, so they depend neither on the number of ranks nor on
    an interruption of the run.
    """

    def __init__(self, losses: AutoencoderLossConfig, seed: int, device: torch.device):
        self.losses, self.seed = losses, seed
        self.network = load_perceptual(losses.perceptual_files, losses.perceptual_rescale)
        self.network.to(device)
        for path in losses.perceptual_files:
            digest = file_digest(Path(path))
            logger.info(f"perceptual loss: {self.network.name}, {path}, sha256 {digest}")

    def __call__(self, image: Tensor, reference: Tensor, sample_indices: list[int]) -> Tensor:
        sizes = image.shape[2:]
        slices = self.slices(sizes, sample_indices, image.device) if len(sizes) == 3 else ()
        return perceptual_loss(self.network, image, reference, slices)

    def slices(
        self, sizes: tuple[int, ...], sample_indices: list[int], device: torch.device
    ) -> list[Tensor]:
        """For each axis the indices (B, K) of its slices, without repetition."""
        setting = self.losses.perceptual_slices
        counts = [min(int(setting), n) if setting >= 1 else max(1, int(setting * n)) for n in sizes]
        if self.losses.perceptual_slicing == "even":  # the middles of K equal intervals
            middles = [(torch.arange(k) + 0.5) / k for k in counts]
            slices = [
                (ratios * n).long().expand(len(sample_indices), -1)
                for ratios, n in zip(middles, sizes, strict=True)
            ]
        else:
            rows = []
            for sample_index in sample_indices:
                random = generator(torch.device("cpu"), self.seed, "slices", sample_index)
                rows.append(
                    [
                        torch.randperm(n, generator=random)[:k]
                        for n, k in zip(sizes, counts, strict=True)
                    ]
                )
            slices = [torch.stack(axis) for axis in zip(*rows, strict=True)]
        return [indices.to(device, non_blocking=True) for indices in slices]
