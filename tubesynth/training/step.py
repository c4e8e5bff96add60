"""One optimizer step of all phases of a stage: gradients, one wait for the device, updates.

Mixed precision, accumulation, gradient synchronization and clipping are in this file alone.
"""

import math
from contextlib import ExitStack
from functools import reduce
from operator import add
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from tubesynth.config.schema import TrainConfig
from tubesynth.runtime import dist, stop_signal
from tubesynth.runtime.precision import autocast
from tubesynth.runtime.profiler import INACTIVE, Profiler
from tubesynth.training.phase import Phase

# Below this loss scale an overflow in 16-mixed is a real Inf or NaN, not the scaler probing for its
# largest scale: the loss itself is no longer enlarged.
SMALLEST_PROBING_SCALE = 1.0


class StepResult(NamedTuple):
    """The result of one optimizer step of one phase."""

    # Scalars on the device: the mean of each loss term over the micro-batches of this rank, and the
    # norm PHASE_gradient_norm before clipping. Empty where the phase has not begun.
    values: dict[str, Tensor]
    updated: bool = True  # False: the step was skipped and no weight has changed
    problem: str | None = None  # the loss or gradient that is not finite; None while scale probing


class Step(NamedTuple):
    """The results of the phases, up to the first with a problem, and whether to stop after it."""

    results: list[StepResult]
    signalled: bool  # a signal had reached any rank when the gradients were computed


def training_step(
    phases: list[Phase],
    micro_batches: list[dict],
    step: int,
    train: TrainConfig,
    profiler: Profiler = INACTIVE,
) -> Step:
    """One optimizer step of each phase on the mean loss of its micro-batches.

    All gradients come first, so no phase depends on the update of another, and the host waits for
    the device once a step. Gradients are averaged over the ranks, so all of them update their
    weights, or none. No phase is updated after one with a problem.
    """
    values = [_gradient(phase, micro_batches, train, profiler) for phase in phases]
    norms = [v[_norm_name(p)] for p, v in zip(phases, values, strict=True) if v]
    with profiler("optimizer"):
        numbers, signalled = dist.read(norms, stop_signal.received() is not None)
    remaining, results = iter(numbers), []
    for phase, terms in zip(phases, values, strict=True):
        if results and results[-1].problem:
            if terms:
                phase.scaler.update()  # its gradient is computed and is not used
        elif terms:
            is_finite = math.isfinite(next(remaining))
            results.append(_update(phase, terms, step, is_finite, profiler))
        else:
            results.append(StepResult({}))
    return Step(results, signalled)


def _norm_name(phase: Phase) -> str:
    """The name of the norm of a phase's gradient, among the values of a step."""
    return f"{phase.name}_gradient_norm"


def _gradient(
    phase: Phase, micro_batches: list[dict], train: TrainConfig, profiler: Profiler
) -> dict[str, Tensor]:
    """Compute and clip the gradient of a phase; StepResult.values, {} if it has not begun."""
    device = next(phase.module.parameters()).device

    # The gradients of the micro-batches add up, and DDP averages over ranks in the last pass.
    phase.optimizer.zero_grad(set_to_none=True)
    values: dict[str, Tensor] = {}
    for index, batch in enumerate(micro_batches):
        is_last = index == len(micro_batches) - 1
        with ExitStack() as stack:
            if not is_last and isinstance(phase.forward, DistributedDataParallel):
                stack.enter_context(phase.forward.no_sync())
            with profiler("forward"), autocast(device, train.precision):
                terms = phase.loss(phase.forward, batch)
                if not terms:
                    return {}
                loss = reduce(add, terms.values()) / len(micro_batches)
            with profiler("backward"):
                phase.scaler.scale(loss).backward()
        for name, term in terms.items():
            share = term.detach() / len(micro_batches)
            values[name] = values[name] + share if name in values else share

    with profiler("optimizer"):
        phase.scaler.unscale_(phase.optimizer)
        parameters = list(phase.module.parameters())
        if train.gradient_clip:
            norm = torch.nn.utils.clip_grad_norm_(parameters, train.gradient_clip)
        else:  # without a pass that multiplies all gradients by 1
            norm = torch.nn.utils.get_total_norm(p.grad for p in parameters if p.grad is not None)
    return {**values, _norm_name(phase): norm}


def _update(
    phase: Phase, values: dict[str, Tensor], step: int, is_finite: bool, profiler: Profiler
) -> StepResult:
    """Update the weights and EMA copies of a phase, unless its gradient is not finite.

    values: the output of _gradient; is_finite: whether the norm in them is.
    """
    problem = None
    if is_finite:
        with profiler("optimizer"):
            phase.optimizer.step()  # scaler.step would wait for the device to ask the same
        with profiler("averages"):
            for ema in phase.averages:
                ema.update(phase.module, step + 1)
    else:
        bad = [name for name, value in values.items() if not math.isfinite(value.item())]
        bad_losses = [name for name in bad if name != _norm_name(phase)]
        # The scaler probes for the largest scale that does not overflow. That is no fault if the
        # losses are finite on all ranks: losses differ by rank, and all ranks must decide the same.
        probing = phase.scaler.is_enabled() and phase.scaler.get_scale() > SMALLEST_PROBING_SCALE
        if not probing or dist.any_rank(bool(bad_losses)):
            problem = f"loss {', '.join(bad_losses)}" if bad_losses else "the gradient"
    phase.scaler.update()
    return StepResult(values, is_finite, problem)
