"""The one training loop: report, preview, save, stop?, gradients, optimizer, EMA, step.

A stage hands it phases (name, module, loss). A GAN has two, flow matching has one. Mixed precision,
accumulation, gradient synchronisation and clipping appear here once. The position of a run is two
numbers, the optimizer step and the global draw, and all randomness is keyed to them: a resumed run
repeats an uninterrupted one bit for bit.
"""

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from tubesynth.build.checkpoint import Best, Position
from tubesynth.config.schema import TrainConfig
from tubesynth.runtime import dist
from tubesynth.runtime.errors import InputError, Stopped
from tubesynth.runtime.precision import AUTOCAST_DTYPE
from tubesynth.runtime.run_log import RunLog
from tubesynth.runtime.seeding import derive
from tubesynth.training.phase import Phase

LEAST_SCALE = 1.0  # of the gradients in 16-mixed: what overflows there is not finite by itself


class Stage(Protocol):
    """What a stage gives the loop."""

    phases: list[Phase]
    progress_terms: tuple[str, ...]  # loss terms on the progress bar
    printed_scores: tuple[str, ...]  # validation scores on the terminal; the log has all scores

    def batches(self, draw: int, end_draw: int) -> Iterator[dict]:
        """This rank's batches, on the device, for the global draws in [draw, end_draw)."""

    def validate(self) -> dict[str, float]:
        """Scores on the validation set, the same on every rank; "loss" among them."""

    def preview(self) -> dict:
        """Panels by name, (H, W, 3) uint8; called on every rank, used on rank 0."""


def learning_rate_factor(step: int, total_steps: int, warmup_steps: int, schedule: str) -> float:
    """Linear warm-up, then constant or half a cosine down to 0 at total_steps."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class StopSignal:
    """Remembers SIGTERM, SIGUSR1 or SIGINT, so that a run can end where nothing is lost."""

    def __init__(self):
        self.name = None
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._remember)

    def _remember(self, number, frame):
        if self.name and number == signal.SIGINT:
            raise KeyboardInterrupt  # asked twice
        self.name = signal.Signals(number).name

    def end_here(self, said: str) -> None:
        """Stopped on every rank, where a signal has come to one."""
        if dist.any_rank(self.name is not None):
            raise Stopped(f"{said}; the same command goes on from there")


class BadStepGuard:
    """Counts non-finite steps in a row and names the offending loss when there are too many."""

    def __init__(self, budget: int):
        self.budget = budget
        self.in_a_row = 0

    def passed(self) -> None:
        self.in_a_row = 0

    def failed(self, step: int, phase: str, terms: dict[str, float]) -> None:
        losses = {n: value for n, value in terms.items() if n != f"{phase}_gradient_norm"}
        bad = [name for name, value in losses.items() if not math.isfinite(value)]
        what = f"loss {', '.join(bad)} is not finite" if bad else "the gradient is not finite"
        if dist.is_main():
            tqdm.write(f"step {step}, {phase}: {what}: the step is skipped")
        self.in_a_row += 1
        if self.in_a_row > self.budget:
            raise InputError(
                f"step {step}, {phase}: {what}, {self.in_a_row} steps in a row: lower"
                " train.learning_rate, set train.gradient_clip, or use --precision 32"
            )


def optimise(
    phase: Phase, batches: list[dict], step: int, train: TrainConfig
) -> tuple[dict[str, float], bool]:
    """One optimizer step of one phase over its micro-batches.

    Returns the mean of each loss term, and whether all was finite; if not, no weight has changed.
    The gradient is averaged over the ranks, so all of them see the same.
    """
    device_type = next(phase.module.parameters()).device.type
    dtype = AUTOCAST_DTYPE.get(train.precision)
    phase.optimizer.zero_grad(set_to_none=True)
    sums: dict[str, Tensor] = {}
    for index, batch in enumerate(batches):
        last = index == len(batches) - 1
        with ExitStack() as stack:
            if not last and isinstance(phase.forward, DistributedDataParallel):
                stack.enter_context(phase.forward.no_sync())
            autocast = torch.autocast(device_type, dtype) if dtype else nullcontext()
            with autocast:
                terms = phase.loss(phase.forward, batch)
                if not terms:  # this phase has not begun
                    return {}, True
                total = sum(terms.values()) / len(batches)
            phase.scaler.scale(total).backward()
        for name, value in terms.items():
            sums[name] = sums.get(name, 0) + value.detach() / len(batches)

    phase.scaler.unscale_(phase.optimizer)
    parameters = [p for p in phase.module.parameters() if p.grad is not None]
    limit = train.gradient_clip or math.inf
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, limit))  # the one sync point
    names = list(sums)
    values = dict(zip(names, torch.stack([sums[n].float() for n in names]).tolist(), strict=True))
    finite = math.isfinite(norm)
    if finite:
        phase.scaler.step(phase.optimizer)
        for ema in phase.averages:
            ema.update(phase.module, step + 1)
    elif phase.scaler.is_enabled() and phase.scaler.get_scale() > LEAST_SCALE:
        # The scaler probes for the largest scale that does not overflow: no fault of the data. The
        # losses are each rank's own, and all must go the same way from here.
        finite = not dist.any_rank(not all(map(math.isfinite, values.values())))
    phase.scaler.update()
    return {**values, f"{phase.name}_gradient_norm": norm}, finite


def fit(
    stage: Stage,
    train: TrainConfig,
    position: Position,
    best: Best,
    num_cases: int,
    global_batch: int,
    seed: int,
    log: RunLog,
    save: Callable[[str], None],
    stop: StopSignal,
) -> dict[str, float]:
    """Train to the end of train.epochs; returns the last validation scores.

    num_cases: length of an epoch in draws; global_batch: draws of all ranks in one optimizer step.
    `save(name)` writes a checkpoint. A run that is new, or scored by another name than before,
    is validated before its first step. Raises Stopped after saving when a signal came.
    """
    steps_left = math.ceil(max(0, train.epochs * num_cases - position.sample_index) / global_batch)
    total_steps = position.step + steps_left
    batches = stage.batches(
        position.sample_index, position.sample_index + steps_left * global_batch
    )
    guard = BadStepGuard(train.max_bad_steps)
    scores: dict[str, float] = {}

    def validate(epoch: int) -> dict[str, float]:
        # Plain numbers: checkpoints hold nothing else, and a metric may give NumPy's.
        scores = {name: float(value) for name, value in stage.validate().items()}
        log.scalars(position.step, epoch, "validation", scores)
        if best.improved(scores, position.step):
            save("best")
        if dist.is_main():  # where no bar is shown, this is what tells of progress
            said = ", ".join(f"{k} {v:.4g}" for k, v in scores.items() if k in stage.printed_scores)
            so_far = f"; best {best.name} {best.value:.4g} at step {best.step}"
            tqdm.write(f"step {position.step}/{total_steps}, validation: {said}{so_far}")
        return scores

    if best.step is None and position.step < total_steps:
        scores = validate(position.sample_index // num_cases)
    bar = tqdm(
        total=total_steps,
        initial=position.step,
        unit="step",
        dynamic_ncols=True,
        disable=None if dist.is_main() else True,
    )
    steps, spent, waited = 0, 0.0, 0.0  # since the last line of the log, validation left out
    while position.step < total_steps:
        step, epoch = position.step, position.sample_index // num_cases
        torch.manual_seed(derive(seed, "step", dist.rank(), step))
        factor = learning_rate_factor(
            step - position.schedule_start,
            total_steps - position.schedule_start,
            train.warmup_steps,
            train.schedule,
        )
        asked = time.perf_counter()
        micro = [next(batches) for _ in range(train.accumulate)]
        waited += time.perf_counter() - asked

        values = {"learning_rate": train.learning_rate * factor}
        for phase in stage.phases:
            for group in phase.optimizer.param_groups:
                group["lr"] = phase.learning_rate * factor
            terms, finite = optimise(phase, micro, step, train)
            values |= terms
            if not finite:
                guard.failed(step, phase.name, terms)
                break  # what comes after would work on what has gone wrong here
        else:
            guard.passed()

        steps += 1
        spent += time.perf_counter() - asked
        position.step += 1
        position.sample_index += global_batch
        bar.update()
        done = position.step == total_steps
        new_epoch = position.sample_index // num_cases
        ended = range(epoch + 1, new_epoch + 1)  # epochs that this step completed

        if position.step % train.log_every == 0 or done:
            for phase in stage.phases:
                values |= phase.statistics()
            log.scalars(
                position.step,
                epoch,
                "training",
                values | {"seconds_per_step": spent / steps, "waiting": waited / spent},
            )
            shown = {k: v for k, v in values.items() if k in stage.progress_terms}
            bar.set_description(
                f"epoch {min(epoch + 1, train.epochs)}/{train.epochs}", refresh=False
            )
            bar.set_postfix({k: f"{v:.4f}" for k, v in shown.items()})
            steps, spent, waited = 0, 0.0, 0.0
        if done or any(e % train.validate_every == 0 for e in ended):
            scores = validate(new_epoch)
            save("last")
        if done or any(e % train.panel_every == 0 for e in ended):
            for name, picture in stage.preview().items():
                log.panel(position.step, name, picture)
        if any(e % train.save_every == 0 for e in ended):
            save(f"epoch_{new_epoch:05d}")
        if dist.any_rank(stop.name is not None):
            save("last")
            bar.close()
            raise Stopped(f"saved at step {position.step}; the same command goes on from there")
    bar.close()
    return scores
