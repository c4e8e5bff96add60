"""ControlNet (Zhang et al. 2023, arXiv 2302.05543): a copy of a U-Net's encoder and middle, which
sees one more condition and speaks to the frozen U-Net through convolutions that begin at zero.

Before its first step it adds nothing: the output is the base model's, bit for bit.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tubesynth.models.blocks import conv, repeat_cases, zero_init
from tubesynth.models.conditions import CachedConditions, Conditions
from tubesynth.models.spade import LabelEncoder
from tubesynth.models.unet import Encoder, UNet


class ControlNet(Encoder):
    """x, t, spacing as for the U-Net, control (B, fX, ...) uint8 of num_classes -> residuals: one
    for each skip, and last the middle's.
    """

    def __init__(
        self,
        dim: int,
        channels: tuple[int, ...],
        num_classes: int,
        label_channels: tuple[int, ...],
        label_factor: int,
        **encoder,
    ):
        super().__init__(dim, channels=channels, label_factor=label_factor, **encoder)
        widths = (*label_channels[:-1], channels[0])
        self.control_encoder = LabelEncoder(dim, num_classes, widths, label_factor)
        zero_init(self.control_encoder.layers[-1])  # the copy, too, begins where the base is
        self.to_residuals = nn.ModuleList(
            zero_init(conv(dim, width, width, kernel=1))
            for width in [*self.skip_widths, channels[-1]]
        )

    def copy_from(self, base: UNet) -> None:
        """Take over the weights of the base model's encoder and middle."""
        weights = base.state_dict()
        own = ("control_encoder.", "to_residuals.")
        shared = [name for name in self.state_dict() if not name.startswith(own)]
        self.load_state_dict({name: weights[name] for name in shared}, strict=False)

    def forward(
        self, x: Tensor, t: Tensor, spacing: Tensor, features: Tensor, prepared: CachedConditions
    ) -> list[Tensor]:
        """features: of the control, from control_encoder, once for all times."""
        h = self.conv_in(x) + features
        h, skips = self.encode(h, self.embed(t, spacing), prepared)
        outputs = [*skips, h]
        return [layer(f) for layer, f in zip(self.to_residuals, outputs, strict=True)]


@dataclass(frozen=True)
class CachedControlConditions:
    """What time does not change: of the base and of the copy, and the features of the control.

    keep (B,) in {0, 1}: the share of the control that each case gets; None: all.
    """

    base: CachedConditions
    control: CachedConditions
    features: Tensor
    keep: Tensor | None

    def rows(self, index: Tensor) -> "CachedControlConditions":
        """The cases of an index (B',) into the batch."""
        keep = None if self.keep is None else self.keep[index]
        return CachedControlConditions(
            self.base.rows(index), self.control.rows(index), self.features[index], keep
        )


class ControlledUNet(nn.Module):
    """A frozen U-Net and its ControlNet, used like a U-Net.

    vessel_class: the control is the mask of that class; None: what the base sees of the label map.
    It is part of the label condition: where that is dropped the base model speaks alone. scale: of
    the residuals while sampling; 0 is the base model.
    """

    def __init__(self, base: UNet, controlnet: ControlNet, vessel_class: int | None):
        super().__init__()
        self.base, self.controlnet = base.requires_grad_(False), controlnet
        self.vessel_class, self.scale = vessel_class, 1.0

    def train(self, mode: bool = True) -> "ControlledUNet":
        super().train(mode)
        self.base.eval()  # frozen: its dropout would only add noise
        return self

    def cache_conditions(
        self, conditions: Conditions, size: tuple[int, ...], spacing: Tensor
    ) -> CachedControlConditions:
        control, keep = conditions.labels, conditions.keep_label
        if control is None:  # no label condition: the base model alone
            shape = [n * self.base.label_factor for n in size]
            control = torch.zeros((1, *shape), dtype=torch.uint8, device=spacing.device)
            keep = spacing.new_zeros(len(spacing))
        if self.vessel_class is not None:
            control = (control == self.vessel_class).to(control.dtype)
        elif self.base.hidden_class is not None:
            control = control.masked_fill(control == self.base.hidden_class, 0)
        memory = self.controlnet.memories(conditions, size, spacing)
        return CachedControlConditions(
            self.base.cache_conditions(conditions, size, spacing),
            self.controlnet.cache_encoder(memory),
            repeat_cases(self.controlnet.control_encoder(control), len(spacing)),
            keep,
        )

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        spacing: Tensor,
        conditions: Conditions | CachedControlConditions | None = None,
    ) -> Tensor:
        if not isinstance(conditions, CachedControlConditions):
            conditions = self.cache_conditions(conditions or Conditions(), x.shape[2:], spacing)
        scale = torch.full((len(x),), self.scale, device=x.device)
        scale = scale if conditions.keep is None else scale * conditions.keep
        scale = scale.reshape(-1, *[1] * (x.ndim - 1))
        control = self.controlnet(x, t, spacing, conditions.features, conditions.control)
        return self.base(x, t, spacing, conditions.base, [scale * r for r in control])
