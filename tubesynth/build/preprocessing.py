"""The preprocessing of a config: grid, HU window and number of classes."""

from tubesynth.config.schema import Config
from tubesynth.data.preprocessing import Preprocessing


def preprocessing_of(config: Config) -> Preprocessing:
    data, (low, high) = config.data, config.data.hu_window
    return Preprocessing(
        tuple(data.resolution),
        tuple(data.spacing),
        (low, high),
        config.labels.num_classes,
        data.antialias,
    )
