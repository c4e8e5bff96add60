"""The training loop of every stage: step, report, validate and save, preview, stop.

A stage gives the loop its phases (name, module, loss): a GAN has two, flow matching has one. The
position of a run is two numbers, its optimizer step and its sample index. All randomness is derived
from them, so a resumed run repeats an uninterrupted one bit for bit.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from tubesynth.build.checkpoint import Best, Position
from tubesynth.config.schema import SwaConfig, TrainConfig
from tubesynth.runtime import dist, stop_signal
from tubesynth.runtime.errors import Stopped
from tubesynth.runtime.log import logger
from tubesynth.runtime.profiler import INACTIVE, Profiler
from tubesynth.runtime.run_log import RunLog
from tubesynth.runtime.seeding import derive
from tubesynth.runtime.stop_signal import RESUMES
from tubesynth.training.bad_steps import BadStepGuard, suspects
from tubesynth.training.means import Interval
from tubesynth.training.phase import Phase
from tubesynth.training.reporter import Reporter
from tubesynth.training.step import training_step

VALIDATION, PANELS = "validation", "panels"  # work that may be due after a step


class Stage(Protocol):
    """The interface of a stage for the loop."""

    phases: list[Phase]

    @property
    def progress_terms(self) -> tuple[str, ...]:
        """The loss terms on the progress bar and in the dated lines."""
        ...

    @property
    def printed_scores(self) -> tuple[str, ...]:
        """The validation scores in the dated lines; metrics.jsonl has all of them."""
        ...

    def batches(self, start: int, end: int, /) -> Iterator[dict]:
        """This rank's batches, on the device, for the global sample indices [start, end)."""
        ...

    def validate(self) -> dict[str, float]:
        """Scores on the validation set, the same on every rank; "loss" among them."""
        ...

    def preview(self) -> dict:
        """Panels by name, (H, W, 3) uint8; called on every rank, used on rank 0."""
        ...


@dataclass
class Run:
    """One training run: its stage, length and position, its log and its checkpoints."""

    stage: Stage
    train: TrainConfig
    seed: int
    device: torch.device
    epoch_length: int  # samples
    global_batch: int  # samples in one optimizer step: batch size x ranks x accumulated batches
    position: Position
    best: Best
    log: RunLog
    save: Callable[[str], None]  # writes checkpoints/NAME.ckpt
    interval: Interval  # what save writes besides the state of the stage
    profiler: Profiler = INACTIVE

    @property
    def epoch(self) -> int:
        """The number of completed epochs."""
        return self.position.sample_index // self.epoch_length


def fit(run: Run) -> dict[str, float]:
    """Train to the end of train.epochs, or until validations have not improved for train.patience.

    Returns the last validation scores, on every rank. A run without a best score yet, because it is
    new or train.best_score has changed, is validated before its first step. Raises Stopped, after
    saving, when a rank has received a signal.
    """
    try:
        return train_to_end(run)
    except Stopped as stopped:
        run.save("last")
        saved = f"saved at step {run.position.step}; {RESUMES}"
        raise Stopped(f"{stopped}: {saved}") from None


def train_to_end(run: Run) -> dict[str, float]:
    """`fit`, but Stopped is raised where the run is not saved yet."""
    stage, train, position = run.stage, run.train, run.position
    samples_left = max(0, train.epochs * run.epoch_length - position.sample_index)
    steps_left = math.ceil(samples_left / run.global_batch)
    total_steps = position.step + steps_left
    end = position.sample_index + steps_left * run.global_batch
    batches = stage.batches(position.sample_index, end)
    guard = BadStepGuard(train.max_bad_steps)
    scores: dict[str, float] = {}
    if position.due:  # its checkpoint was written before this work was done
        scores = end_step(run, position.due, total_steps)
        run.save("last")
    if run.best.step is None and position.step < total_steps:
        scores = validate(run, total_steps)
    reporter = Reporter(
        run.log,
        run.interval,
        run.device,
        stage.progress_terms,
        train.epochs,
        position.step,
        total_steps,
    )

    while position.step < total_steps and not run.best.ends_run(train.patience):
        # The random numbers of a step depend on (seed, rank, step) alone.
        step, epoch = position.step, run.epoch
        torch.manual_seed(derive(run.seed, "step", dist.rank(), step))
        learning_rates = set_learning_rates(run, total_steps)

        # One batch for each accumulated backward pass.
        started = time.perf_counter()
        with run.profiler("data"):
            micro_batches = [next(batches) for _ in range(train.accumulate)]
        seconds_waited = time.perf_counter() - started

        # Gradients, optimizer and averages of each phase.
        skipped = False
        results, signalled = training_step(stage.phases, micro_batches, step, train, run.profiler)
        for phase, result in zip(stage.phases, results, strict=False):
            if result.updated:
                run.interval.means.add(result.values)
            else:
                skipped = True
            if result.problem:
                guard.add_failure(step, phase.name, result.problem, suspects(micro_batches))
                break
        else:
            guard.reset()

        # The position advances by the samples of all ranks.
        position.step += 1
        position.sample_index += run.global_batch
        is_last = position.step == total_steps
        completed_epochs = range(epoch + 1, run.epoch + 1)  # those that end with this step

        # Stochastic weight averaging.
        if train.swa and completed_epochs and run.epoch >= train.swa.from_epoch:
            for phase in stage.phases:
                assert phase.swa
                with run.profiler("averages"):
                    phase.swa.update_parameters(phase.module)
        reporter.end_step(time.perf_counter() - started, seconds_waited, skipped)

        # Report. Means and statistics are collective: every rank takes part.
        if position.step % train.log_every == 0 or is_last:
            statistics = {}
            for phase in stage.phases:
                statistics |= phase.statistics()
            reporter.write_means(epoch, learning_rates | statistics)
        reporter.log_line(epoch)

        # Validate, save and preview at the ends of epochs; stop where a rank has received a signal.
        due = []
        if is_last or any(e % train.validate_every == 0 for e in completed_epochs):
            due.append(VALIDATION)
        if is_last or any(e % train.panel_every == 0 for e in completed_epochs):
            due.append(PANELS)
        if any(e % train.save_every == 0 for e in completed_epochs):
            due.append(f"epoch_{run.epoch:05d}")
        scores = end_step(run, " ".join(due), total_steps) or scores
        if signalled or (dist.world_size() == 1 and stop_signal.received()):
            raise stop_signal.stopped("between two steps")
    reporter.close()
    if position.step < total_steps:
        logger.info(
            f"the run ends early, at step {position.step}/{total_steps}: train.patience, which is"
            f" {train.patience} validations without a better {run.best.name}, is used up"
        )
    return scores


def end_step(run: Run, due: str, total_steps: int) -> dict[str, float]:
    """Do the work that is due after a step; returns the validation scores, {} without validation.

    due: VALIDATION, PANELS and names of checkpoints, in this order. A checkpoint that is written
    before the last of it has the rest in its position, and so has the one of a signal: a run that
    resumes from it does the rest before its next step.
    """
    position, scores = run.position, {}
    works = due.split()
    position.due = ""
    for number, work in enumerate(works):
        position.due = " ".join(works[number + 1 :])
        try:
            if work == VALIDATION:
                scores = validate(run, total_steps)
                run.save("last")
            elif work == PANELS:
                with run.profiler("panels"):
                    for name, picture in run.stage.preview().items():
                        run.log.panel(position.step, name, picture)
            else:
                run.save(work)
        except Stopped:
            position.due = " ".join(works[number:])
            raise
    if VALIDATION in works[:-1]:
        run.save("last")  # nothing is due any more
    return scores


def set_learning_rates(run: Run, total_steps: int) -> dict[str, float]:
    """Set each phase's learning rate for the next step; returns them by their names in the log."""
    train, start = run.train, run.position.schedule_start
    factor = learning_rate_factor(run.position.step - start, total_steps - start, train)
    epochs = run.position.sample_index / run.epoch_length
    rates = {"learning_rate": toward_swa(train.learning_rate * factor, train.swa, epochs)}
    for phase in run.stage.phases:
        rate = toward_swa(phase.learning_rate * factor, train.swa, epochs)
        rates[f"learning_rate_{phase.name}"] = rate
        for group in phase.optimizer.param_groups:
            group["lr"] = rate
    return rates


def learning_rate_factor(step: int, total_steps: int, train: TrainConfig) -> float:
    """Linear warm-up, then constant, or half a cosine down to the minimum at total_steps; or the
    minimum throughout.
    """
    minimum, warmup_steps = train.learning_rate_min / train.learning_rate, train.warmup_steps
    if train.schedule == "minimum":
        return minimum
    if step < warmup_steps:
        start = train.warmup_start
        if start is None:
            return (step + 1) / warmup_steps
        return start + (1 - start) * step / warmup_steps
    if train.schedule == "constant":
        return 1.0
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return minimum + (1 - minimum) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def toward_swa(rate: float, swa: SwaConfig | None, epochs: float) -> float:
    """The schedule's learning rate, annealed to that of train.swa, after this number of epochs."""
    since_start = epochs - (swa.from_epoch - 1) if swa else -1.0
    if swa is None or since_start < 0:
        return rate
    if since_start >= swa.annealing_epochs:
        return swa.learning_rate
    share = 0.5 - 0.5 * math.cos(math.pi * since_start / swa.annealing_epochs)
    return rate + share * (swa.learning_rate - rate)


def validate(run: Run, total_steps: int) -> dict[str, float]:
    """The validation scores, logged; saves best.ckpt where they are the best so far."""
    step, best = run.position.step, run.best
    # Checkpoints hold plain numbers only, and a metric may return NumPy's.
    with run.profiler("validation"):
        scores = {name: float(value) for name, value in run.stage.validate().items()}
    run.log.scalars(step, run.epoch, "validation", scores)
    is_best = best.improved(scores, step)
    printed = [f"{name} {scores[name]:.4g}" for name in run.stage.printed_scores if name in scores]
    place = "" if best.step is None else f" at step {best.step}"
    logger.info(
        f"step {step}/{total_steps}, validation: {', '.join(printed)};"
        f" best {best.name} {best.value:.4g}{place}"
    )
    if is_best:
        run.save("best")
    return scores
