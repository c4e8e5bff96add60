"""An estimate of the memory that training takes, computed without training.

The networks are built on the meta device, which has shapes but no memory, and one forward pass is
recorded: every tensor that autograd saves for the backward pass counts once. Weights, gradients and
Adam's two moments add 16 bytes a parameter (4 for a frozen one), averaged weights 4 each, and
gradients in flight some tensors of the largest size. Workspaces and fragmentation are a factor. On
a CPU and at small sizes, stage 1 took 0.8 and stage 2 0.65 of the estimate; a step of the published
configs on an H200 took 0.7 to 0.9 of it, without the program (docs/gpu.md).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tubesynth.config.schema import (
    AutoencoderConfig,
    Config,
    SegmenterConfig,
    Stage1Config,
    Stage2Config,
    half_lives,
)

IN_FLIGHT = 4  # tensors of the largest size besides the saved ones, such as gradients
AUTOCAST_SHARE = 0.6  # of the activations' bytes: norms and losses stay in 32 bits
OVERHEAD = 1.3  # workspaces, fragmentation
LOSS_VOLUMES = 12  # float images: differences, spectra, amplitudes and their gradients
TOKENS = 1000  # vessel tokens of a case, where they are used
PROGRAM = 500e6  # Python, torch, the device's context


@dataclass(frozen=True)
class Estimate:
    """Bytes: all while training, and of one checkpoint file."""

    training: int
    checkpoint: int
    parameters: int


def estimate(config: Config, autoencoder: AutoencoderConfig | None = None) -> Estimate:
    """The estimate for one process; autoencoder: of the latents, for stages 2 and 3."""
    saved: dict[int, tuple] = {}  # {storage: (storage, bytes)}

    def pack(tensor):
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage, storage.nbytes()  # holding it keeps its address unique
        return tensor

    with torch.device("meta"), _FusedAttention():
        modules, forward = _forward(config, autoencoder or AutoencoderConfig())
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            forward()
    parameters = [p for module in modules for p in module.parameters()]
    weight_storages = {p.untyped_storage()._cdata for p in parameters}
    sizes = [size for key, (_, size) in saved.items() if key not in weight_storages]
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    frozen = sum(p.numel() for p in parameters) - trainable
    data = config.data
    volume = 4 * data.batch_size * math.prod(data.crop or data.resolution)
    activations = sum(sizes) + IN_FLIGHT * max(sizes, default=0)
    if config.train.precision != "32":
        activations *= AUTOCAST_SHARE
    averages = len(half_lives(config.train.ema_half_life)) + (config.train.swa is not None)
    losses = LOSS_VOLUMES * volume if isinstance(config, Stage1Config) else 0
    weights = (16 + 4 * averages) * trainable + 4 * frozen
    total = PROGRAM + OVERHEAD * (activations + losses + weights)
    return Estimate(int(total), (12 + 4 * averages) * trainable + 4 * frozen, trainable + frozen)


class _FusedAttention(TorchFunctionMode):
    """Attention as in the fused kernels: on meta, torch saves the N x N weights. Seeds, which have
    no values on meta, are read as 0.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            return _Attention.apply(*args[:3])
        if func is Tensor.tolist:
            return [0] * len(args[0])
        return func(*args, **(kwargs or {}))


class _Attention(torch.autograd.Function):
    """Queries, keys, values and the result are saved; the shape is all that counts."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        result = query.new_empty((*query.shape[:-1], value.shape[-1]))
        ctx.save_for_backward(query, key, value, result)
        return result

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        raise AssertionError("the estimate has no backward pass")


def _forward(
    config: Config, latent: AutoencoderConfig
) -> tuple[list[nn.Module], Callable[[], object]]:
    """(modules, one forward pass of the first phase), on the current device."""
    data = config.data
    batch, shape = data.batch_size, data.crop or data.resolution
    if isinstance(config, Stage1Config):
        from tubesynth.build.networks import build_autoencoder, build_discriminator
        from tubesynth.models.decoder_condition import DecoderCondition

        autoencoder, discriminator = build_autoencoder(config), build_discriminator(config)
        image = torch.empty(batch, 1, *shape)
        labels = torch.empty(batch, *shape, dtype=torch.uint8)
        condition = DecoderCondition(torch.empty(batch, 2, *shape), labels)

        def run():  # the quantizer adds little, and a codebook's statistics need values
            latents = autoencoder.encode(image)
            discriminator(autoencoder.decode(latents, quantize=False, condition=condition))

        return [autoencoder, discriminator], run
    if isinstance(config, SegmenterConfig):
        from tubesynth.build.networks import build_segmenter

        segmenter = build_segmenter(config)
        return [segmenter], lambda: segmenter(torch.empty(batch, 1, *shape))
    assert isinstance(config, Stage2Config)
    from tubesynth.build.networks import build_network
    from tubesynth.models.conditions import Conditions

    factor = 2 ** len(latent.channels)
    unet = build_network(config, latent.embedding_dim, factor)
    x = torch.empty(batch, latent.embedding_dim, *(n // factor for n in shape))
    labels = torch.empty(batch, *shape, dtype=torch.uint8)

    tokens = {
        "position_mm": torch.empty(batch, TOKENS, 3),
        "radius_mm": torch.empty(batch, TOKENS),
        "tangent": torch.empty(batch, TOKENS, 3),
        "root_distance_mm": torch.empty(batch, TOKENS),
        "mask": torch.empty(batch, TOKENS, dtype=torch.bool),
    }
    fields = torch.empty(batch, 2, *x.shape[2:])
    conditions = Conditions(labels, tokens, fields, torch.empty(batch), torch.empty(batch))

    def run():
        spacing, seeds = torch.empty(batch, config.dim), torch.empty(batch, dtype=torch.long)
        unet(x, torch.empty(batch), spacing, conditions, dropout_seeds=seeds)

    return [unet], run
