"""One training step of any stage on a random batch of its config's sizes, without data.

The bench measures it; doctor counts its memory on tensors without bytes.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from tubesynth.build.checkpoint import Position
from tubesynth.build.networks import build_network
from tubesynth.config.schema import (
    AutoencoderConfig,
    Config,
    SegmenterConfig,
    Stage1Config,
    Stage2Config,
)
from tubesynth.models.controlnet import ControlledUNet
from tubesynth.training.autoencoder import AutoencoderStage
from tubesynth.training.latent import LatentStage
from tubesynth.training.loop import Stage
from tubesynth.training.segmentation import SegmentationStage
from tubesynth.training.step import training_step

TOKENS = 1000  # vessel tokens of a case


def random_step(
    config: Config,
    device: torch.device,
    tokens: int = TOKENS,
    autoencoder: AutoencoderConfig | None = None,
) -> tuple[Callable[[], None], Stage]:
    """(a function of one optimizer step of all phases of a stage on the same batch, the stage).

    tokens: vessel tokens of a case, where the config has a step for them. autoencoder: of the
    latents of stages 2 and 3, by default the published one.
    """
    torch.manual_seed(0)
    stage, batch = _stage_and_batch(config, device, tokens, autoencoder or AutoencoderConfig())

    def step() -> None:  # a later phase reads what an earlier one stored in the batch
        training_step(stage.phases, [dict(batch)], 0, config.train)

    return step, stage


def _stage_and_batch(
    config: Config, device: torch.device, tokens: int, sizes: AutoencoderConfig
) -> tuple[Stage, dict]:
    data, batch = config.data, _conditions(config, device, tokens)
    cases, *shape = batch["label"].shape
    volumes: Any = None  # the data set, which a step does not read
    if not isinstance(config, Stage2Config):
        batch["image"] = torch.rand(cases, 1, *shape, device=device)
    if isinstance(config, SegmenterConfig):
        return SegmentationStage(config, volumes, device), batch
    if isinstance(config, Stage1Config):
        if data.token_step_mm:
            batch["image_fields"] = torch.rand(cases, 2, *shape, device=device)
        position = Position(step=config.losses.adversarial_from_step)
        return AutoencoderStage(config, volumes, position, device), batch

    assert isinstance(config, Stage2Config)
    factor = 2 ** len(sizes.channels)
    size = [n // factor for n in shape]
    batch["latent"] = torch.randn(cases, sizes.embedding_dim, *size, device=device)
    if data.token_step_mm:
        batch["fields"] = torch.rand(cases, 2, *size, device=device)
    network = build_network(config, sizes.embedding_dim, factor)
    frozen = SimpleNamespace(embedding_dim=sizes.embedding_dim, factor=factor)
    latents: Any = SimpleNamespace(autoencoder=frozen, device=device)
    stage = LatentStage(config, volumes, latents, network)
    if isinstance(network, ControlledUNet):
        network.controlnet.copy_from(network.base)
    return stage, batch


def _conditions(config: Config, device: torch.device, tokens: int) -> dict:
    """The part of a batch that all stages share: labels, spacing and, by the config, tokens."""
    data = config.data
    cases, shape = data.batch_size, tuple(data.crop or data.resolution)
    spacing = data.default_spacing or [1.0] * config.dim
    labels = torch.randint(config.labels.num_classes, (cases, *shape), dtype=torch.uint8)
    batch: dict[str, Any] = {
        "case": [str(index) for index in range(cases)],
        "label": labels.to(device),
        "spacing": torch.tensor(spacing[: config.dim]).expand(cases, -1).to(device),
        "sample_index": list(range(cases)),
    }
    if data.token_step_mm:
        position_mm = 100 * (torch.rand(cases, tokens, 3, device=device) - 0.5)
        ones = torch.ones(cases, tokens, device=device)
        batch["tokens"] = {
            "position_mm": position_mm,
            "radius_mm": ones,
            "tangent": torch.zeros_like(position_mm),
            "root_distance_mm": ones,
            "mask": ones.bool(),
        }
    return batch
