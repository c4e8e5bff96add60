"""Reports training steps: lines of metrics.jsonl and timing.jsonl, dated lines of the log, and a
progress bar.
"""

import math
import time

import torch
from tqdm import tqdm

from tubesynth.runtime import dist
from tubesynth.runtime.log import duration, line_is_due, logger
from tubesynth.runtime.memory import gpu_mb, peak_mb
from tubesynth.runtime.run_log import RunLog
from tubesynth.training.means import Interval


class Reporter:
    """Collects the values of each step; every rank has one, rank 0 writes.

    A line of metrics.jsonl has the means over the steps since the last line (`interval`) and over
    all ranks. Steps that were skipped, because a value was not finite, are counted, not averaged.
    """

    def __init__(
        self,
        log: RunLog,
        interval: Interval,
        device: torch.device,
        progress_terms: tuple[str, ...],
        epochs: int,
        first_step: int,
        total_steps: int,
    ):
        self.log, self.interval = log, interval  # the loop adds the values of each phase
        self.device, self.progress_terms = device, progress_terms
        self.epochs, self.step, self.total_steps = epochs, first_step, total_steps
        self.latest: dict[str, float] = {}  # values of the last line of metrics.jsonl
        self._start_timing()
        self.process_steps = 0  # since this process started, to estimate the remaining time
        self.started = time.monotonic()
        self.last_dated_line = -math.inf  # the first line is due after the first step
        self.bar = tqdm(
            total=total_steps,
            initial=first_step,
            unit="step",
            dynamic_ncols=True,
            disable=None if dist.is_main() else True,
        )

    def _start_timing(self) -> None:
        """Start counting for the next line of timing.jsonl, which has the steps of this process."""
        self.timed_steps = 0
        self.seconds = self.seconds_waited = 0.0

    def end_step(self, seconds: float, seconds_waited: float, skipped: bool) -> None:
        """Count one step of all phases; seconds_waited: its time spent waiting for data."""
        self.step += 1
        self.interval.steps += 1
        self.interval.skipped_steps += skipped
        self.timed_steps += 1
        self.process_steps += 1
        self.seconds += seconds
        self.seconds_waited += seconds_waited
        self.bar.update()

    def write_means(self, epoch: int, values: dict[str, float]) -> None:
        """Write a line of both files; every rank must call it. values: added as they are."""
        seconds, waited = dist.sum_over_ranks(self.seconds, self.seconds_waited)
        self.seconds_per_step = seconds / dist.world_size() / self.timed_steps
        timing = {
            "seconds_per_step": self.seconds_per_step,
            "waiting": waited / seconds,
            "peak_memory_mb": dist.max_over_ranks(peak_mb(self.device)),
        }
        timing |= {name: dist.max_over_ranks(mb) for name, mb in gpu_mb(self.device).items()}
        means = self.interval.means.read()
        self.latest = {**means, **values, "skipped_steps": self.interval.skipped_steps}
        self.log.scalars(self.step, epoch, "training", self.latest)
        self.log.scalars(self.step, epoch, "timing", timing)
        self.interval.start()
        self._start_timing()
        self.bar.set_description(f"epoch {min(epoch + 1, self.epochs)}/{self.epochs}", False)
        self.bar.set_postfix({name: f"{value:.4f}" for name, value in self._terms(self.latest)})

    def log_line(self, epoch: int) -> None:
        """Log a dated line where one is due, at least one a minute; rank 0 only."""
        if not dist.is_main():
            return
        now = time.monotonic()
        seconds_per_step = (now - self.started) / self.process_steps  # validation included
        if self.timed_steps:  # since the last line of metrics.jsonl: the means of this rank alone
            values, step_time = self.interval.means.of_this_rank, self.seconds / self.timed_steps
        else:
            values, step_time = lambda: self.latest, self.seconds_per_step
        if not line_is_due(now - self.last_dated_line, step_time):
            return
        terms = "".join(f"{name} {value:.4g}, " for name, value in self._terms(values()))
        left = duration((self.total_steps - self.step) * seconds_per_step)
        memory = f"{peak_mb(self.device) / 1024:.2f} GiB"
        if gpu := gpu_mb(self.device):
            used, total = (mb / 1024 for mb in gpu.values())
            memory += f" (GPU: {used:.2f} of {total:.2f} GiB in use)"
        logger.info(
            f"epoch {min(epoch + 1, self.epochs)}/{self.epochs}, step {self.step}/"
            f"{self.total_steps}: {terms}{step_time:.3g} s a step, {left} left, {memory}"
        )
        self.last_dated_line = now

    def _terms(self, values: dict[str, float]):
        return [(name, values[name]) for name in self.progress_terms if name in values]

    def close(self) -> None:
        self.bar.close()
