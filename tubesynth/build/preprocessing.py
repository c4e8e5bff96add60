"""The preprocessing of a config: grid, HU window and number of classes."""

from tubesynth.config.schema import Config
from tubesynth.data.preprocessing import Preprocessing, SpacingRange


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
