"""Checks of a checkpoint beyond the types of its values: they must fit its own config.

The networks of the config are built without memory (on the meta device) and compared with the
stored weights, so that a misfit is an error before any data is read.
"""

import math
import re
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tubesynth.build.checkpoint_values import require
from tubesynth.build.networks import build_autoencoder, build_phases
from tubesynth.runtime.errors import short
from tubesynth.volume.anatomy import is_quantity

if TYPE_CHECKING:
    from tubesynth.build.checkpoint import Checkpoint, IntervalState, PhaseState, Position

SCALER_KEYS = ("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker")
ADAM_KEYS = ("lr", "eps", "weight_decay")
MOMENTS = ("exp_avg", "exp_avg_sq")
MOST_STEPS = 10**9 - 1  # at a millisecond each they take eleven days
MOST_SAMPLES_PER_STEP = 2**20
# The gradient scaler halves 2**16 down to 1 in as many skipped steps, before a bad step counts.
PROBING_STEPS = 17


def check(checkpoint: "Checkpoint") -> None:
    """InputError at the first value that does not fit the config; the types are checked before."""
    path, config = checkpoint.path, checkpoint.config
    _check_progress(checkpoint)
    state, scale = checkpoint.autoencoder, checkpoint.latent_scale
    latents = state.config.autoencoder if state else None
    with torch.device("meta"), _WithoutValues():
        modules = build_phases(config, latents)
        autoencoder = build_autoencoder(state.config) if state else None
    for name in list(modules)[: 1 if checkpoint.position is None else None]:
        require(name in checkpoint.phases, path, f"phases.{name}", "is missing")
    for name, phase in checkpoint.phases.items():
        require(name in modules, path, f"phases.{name}", f"is no phase of stage {config.stage}")
        _Check(path, f"phases.{name}").phase(phase, modules[name], checkpoint.position)
    _require_steps(checkpoint, next(iter(modules)))
    if checkpoint.interval:
        _Check(path, "interval").interval(checkpoint.interval, modules)
    if state and autoencoder:
        check = _Check(path, "autoencoder")
        check.weights(state.module, autoencoder, "module")
        check(state.digest == state.weights_digest, "digest", "is of other weights")
    if scale and latents:
        for name, values in (("mean", scale.mean), ("std", scale.std)):
            _Check(path, "latent_scale").shape(values, torch.Size([latents.embedding_dim]), name)
        require(bool((scale.std > 0).all()), path, "latent_scale.std", "is not above 0")
    if checkpoint.conditions:
        check, ranges = _Check(path, "conditions"), checkpoint.conditions
        check(all(map(is_quantity, ranges.keys)), "keys", "are no quantities of a label map")
        rows = [row for row in ranges.numbers if isinstance(row, list) and len(row) == 4]
        are_rows = len(rows) == len(ranges.keys) == len(ranges.numbers)
        are_counts = all(_is_number(value) for row in rows for value in row)
        are_counts = are_counts and all(0 < row[0] <= ranges.total for row in rows)
        check(are_rows and are_counts, "numbers", "are not four numbers for each key")


class _WithoutValues(TorchFunctionMode):
    """Skips the random initialization of weights, which imports torch's compiler on meta."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def _check_progress(checkpoint: "Checkpoint") -> None:
    """The counts of the position, and the best score."""
    position, best, path = checkpoint.position, checkpoint.best, checkpoint.path
    require((position is None) == (best is None), path, "best", "and 'position' need each other")
    if position is None or best is None:
        return
    for key, most in (
        ("step", MOST_STEPS),
        ("rollbacks", MOST_STEPS),
        ("sample_index", position.step * MOST_SAMPLES_PER_STEP),
        ("schedule_start", position.step),
    ):
        value = getattr(position, key)
        problem = f"is {short(value)}, not 0 to {most}"
        require(0 <= value <= most, path, f"position.{key}", problem)
    for work in position.due.split():
        is_known = work in ("validation", "panels") or re.fullmatch(r"epoch_\d+", work)
        require(bool(is_known), path, "position.due", f"has '{work}', which is no work of a run")
    modes = checkpoint.config.BEST_SCORES
    known = f"is '{best.name}', not one of {', '.join(modes)}"
    require(best.name in modes, path, "best.name", known)
    expected = f"is '{best.mode}', not {modes[best.name]}, the better direction of {best.name}"
    require(best.mode == modes[best.name], path, "best.mode", expected)
    within = best.step is None or 0 <= best.step <= position.step
    require(within, path, "best.step", f"is {best.step}, not 0 to {position.step}")
    count = best.without_improvement
    require(0 <= count <= MOST_STEPS, path, "best.without_improvement", f"is {short(count)}")
    has_value = best.step is not None or math.isnan(best.value)
    require(has_value, path, "best.step", f"is missing beside the value {best.value}")


def _require_steps(checkpoint: "Checkpoint", name: str) -> None:
    """The first phase has made a step, unless its optimizer restarts or all steps were skipped."""
    optimizer, position = checkpoint.phases[name].optimizer, checkpoint.position
    train = checkpoint.config.train
    if optimizer and position and not optimizer["state"] and "optimizers" not in train.restart:
        require(
            position.step <= PROBING_STEPS + train.max_bad_steps,
            *(checkpoint.path, f"phases.{name}.optimizer.state"),
            f"is empty, after {position.step} steps",
        )


class _Check:
    """Checks the values below one key of a file."""

    def __init__(self, path, key: str):
        self.path, self.key = path, key

    def __call__(self, condition: bool, key: str, problem: str) -> None:
        require(condition, self.path, f"{self.key}.{key}", problem)

    def phase(self, phase: "PhaseState", module: nn.Module, position: "Position | None") -> None:
        """Weights, averages, optimizer and gradient scaler of a phase."""
        self.weights(phase.module, module, "module")
        for half_life, weights in phase.ema.items():
            self(half_life > 0, f"ema.{half_life}", "is a half-life of no more than 0 steps")
            self.weights(weights, module, f"ema.{half_life:g}")
        if phase.swa is not None:
            self(phase.swa.epochs >= 1, "swa.epochs", f"is {phase.swa.epochs}, below 1")
            self.weights(phase.swa.module, module, "swa.module")
        has_both = (phase.optimizer is None) == (position is None)
        self(has_both, "optimizer", "and 'position' need each other")
        if phase.optimizer is not None and position is not None:
            trainable = [p for p in module.parameters() if p.requires_grad]
            self.optimizer(phase.optimizer, trainable, position.step)
        if phase.scaler:
            for key in SCALER_KEYS:
                value = phase.scaler.get(key)
                self(_is_number(value) and value >= 0, f"scaler.{key}", f"is {value!r}")

    def interval(self, interval: "IntervalState", modules: dict[str, nn.Module]) -> None:
        """Sums and counts of the steps since the last line of the log."""
        for key in ("steps", "skipped_steps"):
            self(getattr(interval, key) >= 0, key, f"is {getattr(interval, key)}, below 0")
        for rank, sums in interval.sums.items():
            for names, values in sums.items():
                self.shape(values, torch.Size([2 + names.count(",")]), f"sums.{rank}.{names}")
        for name, counts in interval.counts.items():
            quantizer = getattr(modules.get(name), "quantizer", None)
            shape = torch.Size([getattr(quantizer, "num_codes", 0)])
            self.shape(counts, shape, f"counts.{name}")

    def weights(self, weights: dict[str, Tensor], module: nn.Module, key: str) -> None:
        """A state dict must have the names, shapes and kinds of number of the module's."""
        expected = module.state_dict()
        for name, tensor in expected.items():
            self(name in weights, f"{key}.{name}", "is missing")
            self.shape(weights[name], tensor.shape, f"{key}.{name}")
            is_float = weights[name].is_floating_point()
            problem = f"is {weights[name].dtype}, where the network has {tensor.dtype}"
            self(is_float == tensor.is_floating_point(), f"{key}.{name}", problem)
        for name in weights:
            self(name in expected, f"{key}.{name}", "is no weight of the network of its config")

    def shape(self, tensor: Tensor, expected: torch.Size, key: str) -> None:
        shapes = f"{tuple(tensor.shape)}, where its config needs {tuple(expected)}"
        self(tensor.shape == expected, key, f"has shape {shapes}")

    def optimizer(self, state: dict[str, Any], parameters: list[nn.Parameter], steps: int) -> None:
        """The state of Adam for these parameters after at most `steps` steps; an untouched
        parameter has no moments.
        """
        groups, entries = state.get("param_groups"), state.get("state")
        is_group = isinstance(groups, list) and len(groups) == 1 and isinstance(groups[0], dict)
        self(is_group, "optimizer.param_groups", "is not a list of one group")
        group, count = groups[0], len(parameters)  # pyright: ignore
        indices = "optimizer.param_groups.params"
        self(group.get("params") == [*range(count)], indices, f"is not 0 to {count - 1}")
        for key in ADAM_KEYS:
            value = group.get(key)
            is_size = _is_number(value) and value >= 0
            self(is_size, f"optimizer.param_groups.{key}", f"is {value!r}")
        betas = group.get("betas")
        are_betas = isinstance(betas, list | tuple) and len(betas) == 2
        are_betas = are_betas and all(_is_number(b) and 0 <= b < 1 for b in betas)
        self(are_betas, "optimizer.param_groups.betas", f"is {betas!r}")
        self(isinstance(entries, dict), "optimizer.state", "is not a dictionary")
        for index, entry in entries.items():  # pyright: ignore
            key = f"optimizer.state.{index}"
            self(index in range(count), key, f"is no parameter: they are 0 to {count - 1}")
            self(isinstance(entry, dict), key, f"is {type(entry).__name__}, not dict")
            for name in MOMENTS:
                self(isinstance(entry.get(name), Tensor), f"{key}.{name}", "is no tensor")
                self.shape(entry[name], parameters[index].shape, f"{key}.{name}")
                problem = f"is {entry[name].dtype}, no floating-point numbers"
                self(entry[name].is_floating_point(), f"{key}.{name}", problem)
            is_square = not entry["exp_avg_sq"].numel() or bool(entry["exp_avg_sq"].min() >= 0)
            self(is_square, f"{key}.exp_avg_sq", "is negative, but a mean of squares")
            step = entry.get("step")
            number = step.item() if isinstance(step, Tensor) and step.numel() == 1 else step
            is_count = _is_number(number) and 0 <= number <= steps and number == int(number)
            self(is_count, f"{key}.step", f"is {short(step)}, not a number from 0 to {steps}")


def _is_number(value: Any) -> TypeGuard[float]:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return bool(is_number and math.isfinite(value))
