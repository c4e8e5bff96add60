"""The preprocessing of a config: grid, HU window, number of classes, and vessel tokens."""

from tubesynth.config.schema import Config, SegmenterConfig, Stage1Config
from tubesynth.data.preprocessing import Preprocessing, SpacingRange
from tubesynth.data.volumes import TokenSource


def preprocessing_of(config: Config) -> Preprocessing:
    data, (low, high) = config.data, config.data.hu_window
    spacing = None
    if data.spacing_range is not None:
        spacing, largest = data.spacing_range
        if spacing != largest:
            spacing = SpacingRange(spacing, largest, data.spacing_draws, config.seed)
    return Preprocessing(
        tuple(data.resolution),
        spacing,
        (low, high),
        config.labels.num_classes,
        data.antialias,
    )


def token_source_of(config: Config) -> TokenSource | None:
    """Where the vessel tokens of a config come from; None where nothing reads them."""
    is_unconditioned = isinstance(config, SegmenterConfig) or (
        isinstance(config, Stage1Config) and config.autoencoder.decoder_condition == "none"
    )
    if is_unconditioned or config.data.token_step_mm is None:
        return None
    return TokenSource(config.labels.vessel, config.data.token_step_mm)
