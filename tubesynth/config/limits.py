"""The ranges of single settings: of weights, shares, counts, widths and lengths.

The largest values are those that no machine takes: a slip of a finger (channels: [64, 12800000]) is
refused, where it would otherwise end the machine.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Require = Callable[[bool, str], None]  # (condition, message): InputError if the condition is false


class Range(NamedTuple):
    """Numbers from low to high; without an end itself where it is open."""

    low: float
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def problem(self, number: float) -> str | None:
        """What the number must be; None where it is within."""
        if number < self.low or (self.low_open and number == self.low):
            return f"must be {'above' if self.low_open else 'at least'} {self.low:g}"
        if number > self.high or (self.high_open and number == self.high):
            return f"must be {'below' if self.high_open else 'at most'} {self.high:.10g}"
        return None


LEVELS = 12  # the longest list
NOT_NEGATIVE, POSITIVE, COUNT = Range(0), Range(0, low_open=True), Range(1)
SHARE, BELOW_1 = Range(0, 1), Range(0, 1, high_open=True)
WIDTH, DEPTH = Range(1, 2**15), Range(0, 100)

RANGES = {
    "data.resolution": Range(1, 2**12),
    "data.spacing_draws": Range(1, 2**10),
    "data.token_step_mm": POSITIVE,
    "data.num_workers": Range(0, 2**10),
    "data.batch_size": Range(1, 2**16),
    **{f"data.augment.{name}": SHARE for name in ("flip", "rotate90", "intensity")},
    "data.augment.intensity_scale": BELOW_1,  # a factor of 0 or below would invert the image
    "data.augment.intensity_shift": SHARE,
    "train.epochs": Range(1, 10**9),
    **{f"train.{name}": COUNT for name in ("accumulate", "log_every", "panel_cases", "patience")},
    **{f"train.{name}_every": COUNT for name in ("validate", "panel", "save")},
    **{f"train.{name}": POSITIVE for name in ("learning_rate", "adam_eps", "swa.learning_rate")},
    **{f"train.{name}": NOT_NEGATIVE for name in ("learning_rate_min", "warmup_steps", "keep")},
    **{f"train.{name}": NOT_NEGATIVE for name in ("max_bad_steps", "swa.annealing_epochs")},
    "train.gradient_clip": NOT_NEGATIVE,
    "train.warmup_start": SHARE,
    **{f"autoencoder.{name}channels": WIDTH for name in ("", "residual_")},
    "autoencoder.embedding_dim": WIDTH,
    "autoencoder.num_residual_layers": DEPTH,
    "autoencoder.codebook_size": Range(2, 2**22),
    "autoencoder.codebook_decay": BELOW_1,
    **{f"autoencoder.{name}": NOT_NEGATIVE for name in ("commitment", "revive_after", "kl_weight")},
    "autoencoder.fsq_levels": Range(3, 2**10),
    "autoencoder.condition_dropout": BELOW_1,
    "discriminator.channels": WIDTH,
    "discriminator.num_layers": Range(1, LEVELS),
    "discriminator.learning_rate_ratio": POSITIVE,
    **{f"losses.{name}": NOT_NEGATIVE for name in ("l1", "l2", "vessel_l1", "spectral")},
    **{f"losses.{name}": NOT_NEGATIVE for name in ("adversarial", "discriminator", "perceptual")},
    **{f"losses.{name}": NOT_NEGATIVE for name in ("feature_matching", "vessel_margin_mm")},
    "losses.adversarial_from_step": NOT_NEGATIVE,
    "losses.vessel_weight": POSITIVE,
    "losses.perceptual_slices": Range(0, 2**12, low_open=True),
    "segmenter.channels": WIDTH,
    "latents.variants": Range(1, 2**16),
    "latents.scaling_factor": POSITIVE,
    **{f"unet.{name}channels": WIDTH for name in ("", "label_", "vessel_")},
    "unet.head_channels": Range(0, 2**15),
    "unet.num_res_blocks": Range(1, 100),
    "unet.spade_hidden": WIDTH,
    **{f"unet.{name}dropout": BELOW_1 for name in ("", "attention_")},
    **{
        f"{mode}.{name}": limits
        for mode in ("flow", "diffusion")
        for name, limits in (
            ("label_dropout", BELOW_1),
            ("vessel_dropout", BELOW_1),
            ("vessel_weight", POSITIVE),
        )
    },
    "flow.sigma_min": BELOW_1,
    "flow.offset_noise": NOT_NEGATIVE,
    **{f"flow.{name}": POSITIVE for name in ("time_std", "time_shift")},
    "diffusion.num_timesteps": Range(2, 10**6),
    "sampling.steps": Range(1, 10**6),
    # Of a larger shift all steps but the last are in the noise.
    "sampling.shift": Range(0, 100, low_open=True),
    **{f"sampling.{name}": POSITIVE for name in ("atol", "rtol")},
    "sampling.eta": SHARE,
}


def check_ranges(settings: Mapping[str, Any], require: Require) -> None:
    """Require every number, and the length of every list, to be within its range.

    settings: {dotted key: value}.
    """
    for key, limits in RANGES.items():
        value = settings.get(key)
        if value is None:
            continue
        numbers = value if isinstance(value, list) else [value]
        require(0 < len(numbers) <= LEVELS, f"{key}: {len(numbers)} numbers: give 1 to {LEVELS}")
        for number in numbers:
            problem = limits.problem(number)
            require(problem is None, f"{key}: {number}: {problem}")
