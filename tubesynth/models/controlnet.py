"""ControlNet (Zhang et al. 2023, arXiv 2302.05543): a copy of a U-Net's encoder and middle with one
more condition; it adds residuals to the frozen U-Net's skips through zero-initialized 1x1
convolutions.

Before the first training step the output is that of the base model, bit for bit.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tubesynth.models.blocks import conv, expand_to, repeat_cases, zero_init
from tubesynth.models.conditions import CachedConditions, Conditions
from tubesynth.models.dropout import number_dropouts
from tubesynth.models.spade import LabelEncoder
from tubesynth.models.unet import UNet
from tubesynth.models.unet_encoder import UNetEncoder
from tubesynth.models.window import Window


class ControlNet(UNetEncoder):
    """x, t, spacing as for UNet, and features of the control -> residuals.

    control: (B, fX, ...) uint8 of num_classes. There is one residual for each skip and a last one
    for the output of the middle. `encoder` holds the other arguments of UNetEncoder.
    """

    def __init__(
        self,
        dim: int,
        *,
        channels: tuple[int, ...],
        num_classes: int,
        label_channels: tuple[int, ...],
        label_factor: int,
        published: bool = False,
        **encoder,
    ):
        super().__init__(
            dim, channels=channels, label_factor=label_factor, published=published, **encoder
        )
        widths = label_channels if published else (*label_channels[:-1], channels[0])
        self.control_encoder = LabelEncoder(
            dim, num_classes, widths, label_factor, published, channels[0]
        )
        zero_init(self.control_encoder.layers[-1])  # the copy starts as the base model's encoder
        self.to_residuals = nn.ModuleList(
            zero_init(conv(dim, width, width, kernel=1))
            for width in [*self.skip_widths, channels[-1]]
        )
        number_dropouts(self)

    def copy_from(self, base: UNet) -> None:
        """Copy the weights of the base model's encoder and middle."""
        weights = base.state_dict()
        new_layers = ("control_encoder.", "to_residuals.")
        shared = [name for name in self.state_dict() if not name.startswith(new_layers)]
        self.load_state_dict({name: weights[name] for name in shared}, strict=False)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        spacing: Tensor,
        features: Tensor,
        cached: CachedConditions,
        dropout_seeds: Tensor | None = None,
    ) -> list[Tensor]:
        """features: output of control_encoder, which does not depend on t."""
        h = self.conv_in(x) + features
        h, skips = self.encode(h, self.embed(t, spacing, dropout_seeds), cached)
        outputs = [*skips, h]
        return [layer(f) for layer, f in zip(self.to_residuals, outputs, strict=True)]


@dataclass(frozen=True)
class CachedControlConditions:
    """Cached conditions of the base model and of the ControlNet, and the features of the control.

    keep: (R,) of 0 or 1, one per row of the batch; 0 drops the control; None keeps it in all rows.
    """

    base: CachedConditions
    control: CachedConditions
    features: Tensor
    keep: Tensor | None


class ControlledUNet(nn.Module):
    """A frozen U-Net and its ControlNet, with the interface of UNet.

    vessel_class: the control is the mask of that class; None: the control is the label map as the
    base model sees it. The control belongs to the label condition: a row that drops the label map
    is that of the base model. scale: factor of the residuals; 0 is the base model.
    """

    def __init__(self, base: UNet, controlnet: ControlNet, vessel_class: int | None):
        super().__init__()
        self.base, self.controlnet = base.requires_grad_(False), controlnet
        self.vessel_class, self.scale = vessel_class, 1.0

    def train(self, mode: bool = True) -> "ControlledUNet":
        super().train(mode)
        self.base.eval()  # frozen, so dropout would only add noise
        return self

    @property
    def multiple(self) -> int:
        """See UNet."""
        return self.base.multiple

    def cache_conditions(
        self, conditions: Conditions, size: tuple[int, ...] | Window, spacing: Tensor
    ) -> CachedControlConditions:
        """size: see UNet.cache_conditions."""
        window, keep = Window.of(size), conditions.keep_label
        control = conditions.within(window, self.base.label_factor).labels
        if control is None:  # no label map: the base model alone
            shape = [n * self.base.label_factor for n in window.shape]
            control = torch.zeros((1, *shape), dtype=torch.uint8, device=spacing.device)
            keep = spacing.new_zeros(len(spacing))
        if self.vessel_class is not None:
            control = (control == self.vessel_class).to(control.dtype)
        elif self.base.hidden_class is not None:
            control = control.masked_fill(control == self.base.hidden_class, 0)
        cached = self.controlnet.cache_keys_values(conditions, window, spacing)
        return CachedControlConditions(
            self.base.cache_conditions(conditions, window, spacing),
            self.controlnet.cache_encoder(cached),
            repeat_cases(self.controlnet.control_encoder(control), len(spacing)),
            keep,
        )

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        spacing: Tensor,
        conditions: Conditions | CachedControlConditions | None = None,
        dropout_seeds: Tensor | None = None,
    ) -> Tensor:
        if not isinstance(conditions, CachedControlConditions):
            conditions = self.cache_conditions(conditions or Conditions(), x.shape[2:], spacing)
        scale = torch.full((len(x),), self.scale, device=x.device)
        scale = scale if conditions.keep is None else scale * conditions.keep
        control = self.controlnet(
            x, t, spacing, conditions.features, conditions.control, dropout_seeds
        )
        return self.base(x, t, spacing, conditions.base, [expand_to(scale, x) * r for r in control])
