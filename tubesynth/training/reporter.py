"""Reports training steps: lines of metrics.jsonl, dated lines of the log, and a progress bar."""

import math
import time

import torch
from tqdm import tqdm

from tubesynth.runtime import dist
from tubesynth.runtime.log import duration, line_is_due, logger
from tubesynth.runtime.memory import peak_mb
from tubesynth.runtime.run_log import RunLog
from tubesynth.training.means import StepMeans


class Reporter:
    """Collects the values of each step; every rank has one, rank 0 writes.

    A line of metrics.jsonl has the means over the steps since the last line and over all ranks.
    Steps that were skipped, because a value was not finite, are counted and not averaged.
    """

    def __init__(
        self,
        log: RunLog,
        device: torch.device,
        progress_terms: tuple[str, ...],
        epochs: int,
        first_step: int,
        total_steps: int,
    ):
        self.log, self.device, self.progress_terms = log, device, progress_terms
        self.epochs, self.step, self.total_steps = epochs, first_step, total_steps
        self.means = StepMeans()  # the loop adds the values of each phase
        self.latest: dict[str, float] = {}  # values of the last line of metrics.jsonl
        self._start_interval()
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

    def _start_interval(self) -> None:
        """Start counting for the next line of metrics.jsonl."""
        self.steps = self.skipped_steps = 0
        self.seconds = self.seconds_waited = 0.0

    def end_step(self, seconds: float, seconds_waited: float, skipped: bool) -> None:
        """Count one step of all phases; seconds_waited: its time spent waiting for data."""
        self.step += 1
        self.steps += 1
        self.process_steps += 1
        self.skipped_steps += skipped
        self.seconds += seconds
        self.seconds_waited += seconds_waited
        self.bar.update()

    def write_means(self, epoch: int, values: dict[str, float]) -> None:
        """Write a line of metrics.jsonl; every rank must call it. values: added as they are."""
        world_size = dist.world_size()
        seconds, waited = dist.sum_over_ranks(self.seconds, self.seconds_waited)
        self.latest = {
            **self.means.read(),
            **values,
            "skipped_steps": self.skipped_steps,
            "seconds_per_step": seconds / world_size / self.steps,
            "waiting": waited / seconds,
            "peak_memory_mb": dist.max_over_ranks(peak_mb(self.device)),
        }
        self.log.scalars(self.step, epoch, "training", self.latest)
        self._start_interval()
        self.bar.set_description(f"epoch {min(epoch + 1, self.epochs)}/{self.epochs}", False)
        self.bar.set_postfix({name: f"{value:.4f}" for name, value in self._terms(self.latest)})

    def log_line(self, epoch: int) -> None:
        """Log a dated line where one is due, at least one a minute; rank 0 only."""
        if not dist.is_main():
            return
        now = time.monotonic()
        seconds_per_step = (now - self.started) / self.process_steps  # validation included
        if self.steps:  # since the last line of metrics.jsonl: the means of this rank alone
            values, step_time = self.means.of_this_rank, self.seconds / self.steps
        else:
            values, step_time = lambda: self.latest, self.latest["seconds_per_step"]
        if not line_is_due(now - self.last_dated_line, step_time):
            return
        terms = "".join(f"{name} {value:.4g}, " for name, value in self._terms(values()))
        left = duration((self.total_steps - self.step) * seconds_per_step)
        logger.info(
            f"epoch {min(epoch + 1, self.epochs)}/{self.epochs}, step {self.step}/"
            f"{self.total_steps}: {terms}{step_time:.3g} s a step, {left} left,"
            f" {peak_mb(self.device) / 1024:.2f} GiB"
        )
        self.last_dated_line = now

    def _terms(self, values: dict[str, float]):
        return [(name, values[name]) for name in self.progress_terms if name in values]

    def close(self) -> None:
        self.bar.close()
