"""What a latent generator is told of a case, and what its network has made of it.

Every condition may be missing. The label condition is the label map, its vessel class included
unless the network hides it; the vessel condition is the tokens together with the fields drawn from
them. Each is kept or dropped on its own, case by case.
"""

from dataclasses import dataclass

from torch import Tensor

from tubesynth.models.vessel_attention import CachedKeysValues
from tubesynth.models.vessel_tokens import Tokens


@dataclass(frozen=True)
class Conditions:
    """labels (B, fX, ...) uint8 class indices; tokens, padded, with their mask; fields
    (B, 2, X, ...) closeness and radius of the vessels, as data/tokens.py draws them.

    keep_* in {0, 1}, None: all: one for each row of the network's batch, which has all cases once
    (B,), or once for each side of a guidance (S B,).
    """

    labels: Tensor | None = None
    tokens: Tokens | None = None
    fields: Tensor | None = None
    keep_label: Tensor | None = None
    keep_vessels: Tensor | None = None


@dataclass(frozen=True)
class CachedConditions:
    """All that does not depend on time, made once by `UNet.prepare` and used at every step.

    spade: of each decoder block, the scale-and-shift maps of its two norms. vessels: for each
    encoder block, the middle and each decoder block, what its cross-attention needs, if it has one.
    """

    spade: list[tuple[Tensor, Tensor]]
    encoder_vessels: list[CachedKeysValues | None]
    middle_vessels: CachedKeysValues | None
    decoder_vessels: list[CachedKeysValues | None]

    def rows(self, index: Tensor) -> "CachedConditions":
        """The cases of an index (B',) into the batch."""

        def pick(memory: CachedKeysValues | None) -> CachedKeysValues | None:
            return memory and memory.rows(index)

        return CachedConditions(
            [(first[index], second[index]) for first, second in self.spade],
            [pick(memory) for memory in self.encoder_vessels],
            pick(self.middle_vessels),
            [pick(memory) for memory in self.decoder_vessels],
        )
