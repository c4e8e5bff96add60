"""The grid and window of a config as the cache's preprocessing."""

from tubesynth.config.schema import DataConfig
from tubesynth.data.volumes import Preprocessing


def preprocessing_of(data: DataConfig) -> Preprocessing:
    low, high = data.hu_window
    return Preprocessing(tuple(data.resolution), tuple(data.spacing), (low, high), data.num_classes)
