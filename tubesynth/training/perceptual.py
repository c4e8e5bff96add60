"""The perceptual loss of stage 1: a frozen network from local files, on slices of all planes."""

import torch
from torch import Tensor

from tubesynth.config.schema import AutoencoderLossConfig
from tubesynth.data.digest import file_digest
from tubesynth.losses.autoencoder import perceptual_loss
from tubesynth.models.perceptual import load_perceptual
from tubesynth.runtime import dist
from tubesynth.runtime.seeding import generator


class Perceptual:
    """(image, reference) (B, 1, X, ...) and the draw of each case -> the loss, not weighted.

    Random slices are keyed by draw, so they do not depend on the number of ranks, nor on whether
    the run was stopped in between.
    """

    def __init__(self, losses: AutoencoderLossConfig, seed: int, device: torch.device):
        self.losses, self.seed = losses, seed
        self.network = load_perceptual(losses.perceptual_files).to(device)
        if dist.is_main():
            for path in losses.perceptual_files:
                print(f"perceptual: {self.network.name}, {path}, sha256 {file_digest(path)}")

    def __call__(self, image: Tensor, reference: Tensor, draws: list[int]) -> Tensor:
        sizes = image.shape[2:]
        slices = self.slices(sizes, draws, image.device) if len(sizes) == 3 else ()
        return perceptual_loss(self.network, image, reference, slices)

    def slices(self, sizes: tuple[int, ...], draws: list[int], device) -> list[Tensor]:
        """For each axis the indices (B, K) of its slices, none twice."""
        wanted = self.losses.perceptual_slices
        if self.losses.perceptual_slicing == "even":  # the middles of K equal parts
            ratios = [(torch.arange(min(wanted, n)) + 0.5) / min(wanted, n) for n in sizes]
            chosen = [
                (ratio * n).long().expand(len(draws), -1)
                for ratio, n in zip(ratios, sizes, strict=True)
            ]
        else:
            rows = []
            for draw in draws:
                random = generator(torch.device("cpu"), self.seed, "slices", draw)
                rows.append([torch.randperm(n, generator=random)[:wanted] for n in sizes])
            chosen = [torch.stack(axis) for axis in zip(*rows, strict=True)]
        return [indices.to(device, non_blocking=True) for indices in chosen]
