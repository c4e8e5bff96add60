"""The grid and window of a config as the cache's preprocessing."""

from tubesynth.config.schema import DataConfig
from tubesynth.data.volumes import Preprocessing


def preprocessing_of(data: DataConfig) -> Preprocessing:
    return Preprocessing(
        tuple(data.resolution), tuple(data.spacing), tuple(data.hu_window), data.num_classes
    )
