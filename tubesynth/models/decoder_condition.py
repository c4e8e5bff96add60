"""The condition of the decoder of stage 1: vessel fields and class labels at image resolution.

The anatomy is known in a synthesis, and in a reconstruction of a labeled CT. A decoder conditioned
on it can render a vessel thinner than a latent cell; the latents need only carry its contrast.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from tubesynth.models.blocks import conv, expand_to

EMBEDDING_CHANNELS = 4  # of a class
FIELD_CHANNELS = 3  # presence of the condition, closeness, radius
POOL_CHANNELS = 32  # of the hidden layer of ContrastPool
CONTRAST_CHANNELS = 2  # closeness times a contrast of the image


@dataclass(frozen=True)
class DecoderCondition:
    """The anatomy of B images at their resolution; without fields and labels, no anatomy.

    fields: (B, 2, X, ...) closeness and radius of the vessels (volume/rasterize.py). labels:
    (B, X, ...) uint8 class indices. keep_fields, keep_labels: (B,) of 0 or 1, where 0 drops that
    condition of an image; None keeps all.
    """

    fields: Tensor | None = None
    labels: Tensor | None = None
    keep_fields: Tensor | None = None
    keep_labels: Tensor | None = None

    def to(self, device: torch.device) -> "DecoderCondition":
        """The same on a device."""
        tensors = (getattr(self, field.name) for field in fields(self))
        return DecoderCondition(*(None if t is None else t.to(device) for t in tensors))


class ContrastPool(nn.Module):
    """Latents of an image (B, D, x, ...) -> its contrasts (B, CONTRAST_CHANNELS).

    Attention pooling (Ilse et al. 2018, arXiv 1802.04712, without the gate): each contrast is a
    mean of a value over all cells, with weights that are learned, so that a vessel far from any
    other blood can be as bright as the aorta of its own image.
    """

    def __init__(self, dim: int, latent_channels: int):
        super().__init__()
        self.hidden = conv(dim, latent_channels, POOL_CHANNELS, 1)
        self.out = conv(dim, POOL_CHANNELS, 2 * CONTRAST_CHANNELS, 1)

    def forward(self, latents: Tensor) -> Tensor:
        cells = self.out(self.hidden(latents).relu()).flatten(2).float()
        score, value = cells.chunk(2, dim=1)
        return (score.softmax(-1) * value).sum(-1)


class ConditionEncoder(nn.Module):
    """DecoderCondition -> (B, channels, X, ...): vessel fields and, with classes, an embedding.

    An absent or dropped condition is 0 in all its channels. num_classes: None for vessels alone.
    latent_channels: of a pool whose contrasts multiply the closeness, in further channels; None for
    no pool.
    """

    def __init__(self, dim: int, num_classes: int | None, latent_channels: int | None):
        super().__init__()
        self.num_classes = num_classes
        self.field_channels = FIELD_CHANNELS
        self.pool = None
        if latent_channels is not None:
            self.field_channels += CONTRAST_CHANNELS
            self.pool = ContrastPool(dim, latent_channels)
        self.channels = self.field_channels
        if num_classes is not None:
            self.channels += EMBEDDING_CHANNELS
            self.embedding = nn.Embedding(num_classes, EMBEDDING_CHANNELS)
            nn.init.normal_(self.embedding.weight, std=0.1)

    def forward(self, condition: DecoderCondition, latents: Tensor, absent: Tensor) -> Tensor:
        """latents: of whole images. absent: zeros (B, channels, X, ...), the features of an empty
        condition.
        """
        others = self.channels - self.field_channels
        features = list(absent.split([self.field_channels, others], dim=1))
        if condition.fields is not None:
            closeness = condition.fields[:, :1]
            fields = [torch.ones_like(closeness), condition.fields]
            if self.pool is not None:
                fields.append(closeness * expand_to(self.pool(latents), closeness))
            features[0] = _keep_rows(torch.cat(fields, dim=1), condition.keep_fields)
        if condition.labels is not None and self.num_classes is not None:
            embedded = self.embedding(condition.labels.int()).movedim(-1, 1)
            features[1] = _keep_rows(embedded, condition.keep_labels)
        return torch.cat([part.to(absent.dtype) for part in features], dim=1)


class ConditionLayer(nn.Module):
    """Adds features of the condition to feature maps whose voxels are `side` image voxels wide.

    The side ** dim image voxels in one of theirs are channels, so no voxel of a thin vessel is lost
    and no layer is added at full resolution. The convolution starts at zero and has no bias:
    without its condition the decoder is that of an unconditioned autoencoder.
    """

    def __init__(self, dim: int, condition_channels: int, side: int, width: int):
        super().__init__()
        self.side = side
        # Where the condition is constant its voxels add up, and a step of Adam would change the
        # features by their number times the learning rate.
        self.gain = side ** (-dim / 2)
        # Only the finest layer has a neighborhood: its condition changes from voxel to voxel.
        kernel = 3 if side == 2 else 1
        self.conv = conv(dim, condition_channels * side**dim, width, kernel, bias=False)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x: (B, width, X / side, ...); condition: (B, condition_channels, X, ...)."""
        return x + self.gain * self.conv(space_to_depth(condition, self.side))


def space_to_depth(x: Tensor, side: int) -> Tensor:
    """(B, C, X, ...) -> (B, C side ** dim, X / side, ...): the voxels of a cell as channels."""
    dim = x.ndim - 2
    split = x.reshape(*x.shape[:2], *[n for size in x.shape[2:] for n in (size // side, side)])
    cells, voxels = range(2, 2 * dim + 1, 2), range(3, 2 * dim + 2, 2)  # axes of `split`
    return split.permute(0, 1, *voxels, *cells).flatten(1, dim + 1)


def _keep_rows(x: Tensor, keep: Tensor | None) -> Tensor:
    return x if keep is None else x * expand_to(keep[:, None], x)
