"""The conditions of a latent generator, and their features cached for all times.

The label condition is the label map, with its vessel class unless the network hides it. The vessel
condition is the vessel tokens together with the fields rendered from them. Either may be absent,
and either can be dropped case by case, for training and for guidance.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from torch import Tensor

from tubesynth.models.vessel_attention import CachedKeysValues
from tubesynth.models.vessel_tokens import Tokens
from tubesynth.models.window import Window


@dataclass(frozen=True)
class Conditions:
    """Conditions of B cases at image resolution (labels) and latent resolution (fields).

    labels: (B, fX, ...) uint8 class indices. tokens: padded, with their mask. fields:
    (B, 2, X, ...) closeness and radius of the vessels (volume/rasterize.py).
    keep_label, keep_vessels: (R,) of 0 or 1, one per row of the network's batch; 0 drops that
    condition, None keeps all. R = B, or S * B when S guidance terms are evaluated together.
    """

    labels: Tensor | None = None
    tokens: Tokens | None = None
    fields: Tensor | None = None
    keep_label: Tensor | None = None
    keep_vessels: Tensor | None = None

    def within(self, window: Window, factor: int) -> "Conditions":
        """With labels and fields of a window of the latents; tokens stay relative to the whole."""
        labels = None if self.labels is None else window.crop(self.labels, factor)
        fields = None if self.fields is None else window.crop(self.fields)
        return replace(self, labels=labels, fields=fields)


Maps = tuple[Tensor, Tensor] | Tensor | None


@dataclass(frozen=True)
class CachedConditions:
    """Features of the conditions that do not depend on t: computed once, used at every solver step.

    spade: per decoder block, the scale-and-shift maps of its two norms, or None; in training with
    checkpointing the features of its level, of which the block makes them. encoder_vessels,
    middle_vessels, decoder_vessels: the keys and values of each block's cross-attention, or None.
    """

    spade: list[Maps]
    encoder_vessels: list[CachedKeysValues | None]
    middle_vessels: CachedKeysValues | None
    decoder_vessels: list[CachedKeysValues | None]


Features = TypeVar("Features")  # a tensor, None, or a list, tuple or data class of features


def rows_of(features: Features, index: Tensor) -> Features:
    """The rows of the batch at index (B',), of all tensors in cached features."""

    def rows(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[index]
        if isinstance(value, list | tuple):
            return type(value)(map(rows, value))
        if value is None:
            return None
        return replace(value, **{f.name: rows(getattr(value, f.name)) for f in fields(value)})

    return rows(features)
