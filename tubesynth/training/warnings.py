"""What a user should know of a run before it trains; train and its dry run say it."""

from collections.abc import Iterator

from tubesynth.config.length import samples_per_step
from tubesynth.config.schema import Config, Stage1Config, uses_perceptual
from tubesynth.config.unread import unread_settings
from tubesynth.data.duplicates import shared_warning
from tubesynth.volume.cases import Case


def run_warnings(config: Config, training: list[Case], validation: list[Case]) -> Iterator[str]:
    """Of equal images in both splits, and of settings that the run does not read."""
    if shared := shared_warning(training, validation):
        yield shared
    if (batch := samples_per_step(config)) > len(training):
        yield (
            f"data.batch_size times train.accumulate: a step has {batch} samples, but there are"
            f" {len(training)} training cases: lower it, or each step has a case several times"
        )
    yield from config_warnings(config)


def config_warnings(config: Config) -> Iterator[str]:
    """Of settings that the run does not read, and of a term that is left out."""
    for reason, keys in unread_settings(config):
        yield f"{', '.join(keys)}: not read, since {reason}"
    is_stage_1 = isinstance(config, Stage1Config)
    if is_stage_1 and config.losses.perceptual != 0 and not uses_perceptual(config.losses):
        yield (
            f"losses.perceptual: {config.losses.perceptual}, but losses.perceptual_files names no"
            " weights: THE PERCEPTUAL TERM IS LEFT OUT. Name LPIPS's or RadImageNet's weights"
            " (tubesynth/models/perceptual.py), or set losses.perceptual=0"
        )
