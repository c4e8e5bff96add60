"""The length of a training: the samples of a step, its steps, and their computed time on a GPU."""

import math

from tubesynth.config.schema import Config

# Dense products a second in 16 bits, by NVIDIA's data sheets.
PEAK_FLOPS = {"H100": 989e12, "A100": 312e12, "RTX 4090": 165e12}
REACHED_SHARES = (0.19, 0.07)  # of the peak, by the published configs on an H200: docs/gpu.md


def samples_per_step(config: Config, processes: int = 1) -> int:
    """The samples of one optimizer step: batch size x accumulated batches x processes."""
    return config.data.batch_size * config.train.accumulate * processes


def num_steps(config: Config, cases: int, processes: int = 1) -> int:
    """The steps of all train.epochs."""
    return math.ceil(config.train.epochs * cases / samples_per_step(config, processes))


def seconds_per_step(flops: float, peak: float) -> list[float]:
    """At the highest and at the lowest share of a GPU's peak that was measured."""
    return [flops / (share * peak) for share in REACHED_SHARES]
