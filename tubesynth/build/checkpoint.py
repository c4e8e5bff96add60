"""A checkpoint: typed contents of a training run, or its weights alone, saved and loaded.

The file (checkpoint_file.py) is a dictionary of tensors and plain values whose keys are the field
names of the dataclasses below. Files of version 0.1.0, which named two keys differently, are read
too. A checkpoint of stage 2 or 3 is read as one of stage 1, that of its autoencoder, where one of
stage 1 is needed.
"""

import math
import types
import typing
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tubesynth.build.checkpoint_file import read_contents, tensors_sha256, write_contents
from tubesynth.config.loading import config_from_plain
from tubesynth.config.packaged import find_model
from tubesynth.config.schema import Config, Stage1Config
from tubesynth.config.strict import to_plain
from tubesynth.models.scale import LatentScale
from tubesynth.runtime.errors import InputError

StateDict = dict[str, Tensor]

# The format of each stage's files. It rises when a weight changes its meaning or a key its name.
# Files of the formats before the last change, which renamed the keys of OLD_KEYS, are still read.
FORMATS = {1: 5, 2: 6, 3: 6, "segmenter": 5}
FORMATS_0_1_0 = {1: 4, 2: 5, 3: 5, "segmenter": 4}
OLD_KEYS = {"sample_index": "draw", "optimizer": "optimiser"}  # {key: its name in version 0.1.0}

# The phases of each stage; the first holds the network that is sampled from or applied.
PHASES = {
    1: ("autoencoder", "discriminator"),
    2: ("unet",),
    3: ("unet",),
    "segmenter": ("segmenter",),
}


@dataclass
class Position:
    """The progress of a run."""

    step: int = 0  # optimizer steps
    sample_index: int = 0  # number of training samples that all ranks together have used
    schedule_start: int = 0  # the step at which the learning-rate schedule began
    started_from: str | None = None  # checkpoint of another run from which this run started
    due: str = ""  # work after this step that a signal has interrupted (training/loop.py)


@dataclass
class Best:
    """The best value of one validation score so far, and its step; NaN and None before the first.

    mode: "min" or "max", the better direction.
    """

    name: str
    mode: str
    value: float = math.nan
    step: int | None = None

    def improved(self, scores: dict[str, float], step: int) -> bool:
        """Whether this step has a better score, which is then stored; NaN is never better."""
        if self.name not in scores:
            raise InputError(
                f"train.best_score: validation gives no '{self.name}', but {list(scores)}: choose"
                " one of these"
            )
        value = scores[self.name]
        better = value < self.value if self.mode == "min" else value > self.value
        if not (better or math.isnan(self.value)):
            return False
        self.value, self.step = value, step
        return True


@dataclass
class IntervalState:
    """The training steps since the last line of metrics.jsonl (training/means.py).

    sums: by rank, {"name,name": float64 (1 + names,)}, number of steps and sums of values.
    counts: by phase, over all ranks: how often each code was chosen.
    """

    steps: int
    skipped_steps: int
    sums: dict[int, StateDict]
    counts: StateDict


@dataclass
class PhaseState:
    """One trained module: its weights, optimizer, gradient scaler and averaged weights."""

    module: StateDict
    optimizer: dict[str, Any] | None  # None: the weights alone
    scaler: dict[str, Any]  # gradient scaler of 16-mixed; empty otherwise
    ema: dict[float, StateDict]  # averaged weights by half-life in optimizer steps

    def weights(self, half_life: float | None = None) -> StateDict:
        """The averaged weights of this half-life, by default of the first; without averages, the
        weights themselves.
        """
        if half_life is None:
            return next(iter(self.ema.values()), self.module)
        if half_life not in self.ema:
            stored = ", ".join(f"{steps:g}" for steps in self.ema) or "none"
            raise InputError(
                f"no averaged weights with a half-life of {half_life:g} steps in this checkpoint:"
                f" it has {stored}"
            )
        return self.ema[half_life]


@dataclass
class AutoencoderState:
    """A trained autoencoder: its config, the digest of its weights, and the weights."""

    config: Stage1Config
    digest: str
    module: StateDict


@dataclass
class Checkpoint:
    """Everything that sampling and an exact resume need, or the weights that sampling needs.

    position, best: None for weights alone, whose only phase is the first of the stage.
    latent_scale, autoencoder: those of the latents of stages 2 and 3; None for other stages.
    """

    config: Config
    position: Position | None
    best: Best | None
    phases: dict[str, PhaseState]
    latent_scale: LatentScale | None = None
    autoencoder: AutoencoderState | None = None
    interval: IntervalState | None = None  # None in files of weights alone and of version 0.2.0
    path: Path | None = field(default=None, compare=False)  # the file it was loaded from

    def weights(self, half_life: float | None = None) -> StateDict:
        """The weights to sample from, or to apply; half_life as in PhaseState.weights."""
        return self.phases[PHASES[self.config.stage][0]].weights(half_life)

    @cached_property
    def trained_autoencoder(self) -> AutoencoderState:
        """The trained autoencoder of stage 1, or the one of the latents of stages 2 and 3."""
        if isinstance(self.config, Stage1Config):
            weights = self.weights()
            return AutoencoderState(self.config, weights_digest(weights), weights)
        assert self.autoencoder is not None
        return self.autoencoder

    def require_stage(self, stage: int | str) -> None:
        """InputError unless the checkpoint is of this stage."""
        if self.config.stage != stage:
            raise InputError(
                f"{self.path}: a stage-{self.config.stage} checkpoint, where one of stage {stage}"
                " is needed"
            )

    def weights_alone(
        self, half_life: float | None = None, dtype: torch.dtype = torch.float32
    ) -> "Checkpoint":
        """The weights that sampling needs, without optimizer, discriminator and position.

        half_life: as in PhaseState.weights. dtype: float16 rounds the weights of layers, and with
        them the digest of the autoencoder; biases and codebooks stay float32.
        """
        name = PHASES[self.config.stage][0]
        phase = PhaseState(_rounded(self.weights(half_life), dtype), None, {}, {})
        autoencoder = self.autoencoder
        if autoencoder is not None:
            module = _rounded(autoencoder.module, dtype)
            autoencoder = AutoencoderState(autoencoder.config, weights_digest(module), module)
        return replace(
            self,
            position=None,
            best=None,
            phases={name: phase},
            autoencoder=autoencoder,
            interval=None,
        )

    def save(self, path: Path) -> None:
        """Write the file, in the format of its suffix (checkpoint_file.py)."""
        contents = {"format": FORMATS[self.config.stage], **_to_plain(self)}
        del contents["path"]
        write_contents(path, contents)

    @classmethod
    def load(cls, name: str | Path, stage: int | str | None = None) -> "Checkpoint":
        """Read a file, or the packaged model of this name (config/packaged.py).

        InputError if it is not a complete checkpoint, or is of another stage.
        """
        path = Path(name)
        contents = read_contents(find_model(path, stage))
        config = contents.get("config") if isinstance(contents, dict) else None
        if not isinstance(config, dict) or "stage" not in config or "format" not in contents:
            raise InputError(f"{path}: not a tubesynth checkpoint (no format or config in it)")
        file_stage, file_format = config["stage"], contents["format"]
        formats = [f[file_stage] for f in (FORMATS_0_1_0, FORMATS) if file_stage in list(f)]
        if file_format not in formats:
            raise InputError(
                f"{path}: format {file_format} of stage {file_stage}, this version reads"
                f" {' and '.join(map(str, formats)) or 'no such stage'}: use the version of"
                " tubesynth that wrote it"
            )
        checkpoint = _from_plain(cls, contents, path, "")
        checkpoint.path = path
        for phase in PHASES[file_stage][: 1 if checkpoint.position is None else None]:
            _require(phase in checkpoint.phases, path, f"phases.{phase}", "is missing")
        if file_stage in (2, 3):
            for key in ("latent_scale", "autoencoder"):
                _require(getattr(checkpoint, key) is not None, path, key, "is missing")
        if stage == 1 and checkpoint.autoencoder is not None:
            return checkpoint._autoencoder_alone()
        if stage is not None:
            checkpoint.require_stage(stage)
        return checkpoint

    def _autoencoder_alone(self) -> "Checkpoint":
        """The stage-1 checkpoint of the weights of this checkpoint's autoencoder."""
        assert self.autoencoder is not None
        phases = {PHASES[1][0]: PhaseState(self.autoencoder.module, None, {}, {})}
        return Checkpoint(self.autoencoder.config, None, None, phases, path=self.path)


def weights_digest(weights: StateDict) -> str:
    """The first 16 hex digits of the SHA-256 of a module's weights, in float32."""
    return tensors_sha256({name: _as_float32(w) for name, w in weights.items()})[:16]


def _rounded(weights: StateDict, dtype: torch.dtype) -> StateDict:
    """The weights of layers in a dtype. The others are few, and counts may exceed float16."""
    return {n: w.to(dtype) if n.endswith("weight") else w for n, w in weights.items()}


def _as_float32(weight: Tensor) -> Tensor:
    return weight.float() if weight.dtype == torch.float16 else weight


def _to_plain(value: Any) -> Any:
    """Dataclasses as dictionaries; tensors and state dicts as they are."""
    if isinstance(value, Config):
        return to_plain(value)
    if is_dataclass(value):
        return {f.name: _to_plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict) and any(map(is_dataclass, value.values())):
        return {name: _to_plain(item) for name, item in value.items()}
    return value


def _from_plain(kind: Any, value: Any, path: Path, key: str) -> Any:
    """The value as its annotated type; InputError names the file and the key of a wrong value."""
    options = typing.get_args(kind)
    if isinstance(kind, types.UnionType):  # T | None
        return None if value is None else _from_plain(options[0], value, path, key)
    if kind is Any:
        return value
    expected = typing.get_origin(kind) or (dict if is_dataclass(kind) else kind)
    _require(isinstance(value, expected), path, key, f"is {type(value).__name__}, not {expected}")
    if typing.get_origin(kind) is dict:
        items = {n: _from_plain(options[1], item, path, f"{key}.{n}") for n, item in value.items()}
        # A state dict is returned itself: it has an attribute _metadata.
        return items if is_dataclass(options[1]) else value
    if not is_dataclass(kind):
        return value
    assert isinstance(kind, type)
    if issubclass(kind, Config):
        config = config_from_plain(_without_removed_keys(value, path), f"{path}: {key}")
        _require(isinstance(config, kind), path, key, f"is of stage {config.stage}")
        return config
    hints, arguments = typing.get_type_hints(kind), {}
    for each in fields(kind):
        name = f"{key}.{each.name}".lstrip(".")
        old_key = OLD_KEYS.get(each.name)
        if each.name in value or old_key in value:
            item = value[each.name if each.name in value else old_key]
            arguments[each.name] = _from_plain(hints[each.name], item, path, name)
        else:
            _require(each.default is not MISSING, path, name, "is missing")
    return kind(**arguments)


def _without_removed_keys(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """A stored config without the keys of version 0.2.0 that no longer exist."""
    section = dict(config.get("autoencoder") or {})
    if section.pop("vessel_mask_in_decoder", False):
        raise InputError(
            f"{path}: trained with autoencoder.vessel_mask_in_decoder, which became"
            " autoencoder.decoder_condition: train again, or use version 0.2.0"
        )
    return {**config, "autoencoder": section} if section else config


def _require(condition: bool, path: Path, key: str, problem: str) -> None:
    if not condition:
        raise InputError(f"{path}: damaged checkpoint: its '{key}' {problem}: use another file")
