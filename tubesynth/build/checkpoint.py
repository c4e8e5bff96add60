"""A checkpoint: typed contents of a training run, or its weights alone, saved and loaded.

The file (checkpoint_file.py) is a dictionary of tensors and plain values whose keys are the field
names of the dataclasses below. Files of version 0.1.0, which named two keys differently, are read
too. A checkpoint of stage 2 or 3 is read as one of stage 1, that of its autoencoder, where one of
stage 1 is needed.
"""

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tubesynth.build.checkpoint_check import check
from tubesynth.build.checkpoint_file import (
    read_contents,
    read_value,
    tensors_sha256,
    write_contents,
)
from tubesynth.build.checkpoint_values import from_values, require, values_of
from tubesynth.build.networks import build_autoencoder
from tubesynth.config.packaged import find_model
from tubesynth.config.schema import Config, Stage1Config
from tubesynth.models.scale import LatentScale
from tubesynth.models.vqvae import VQVAE
from tubesynth.runtime.errors import InputError
from tubesynth.volume.anatomy import Ranges

StateDict = dict[str, Tensor]

# The format of each stage's files. It rises when a weight changes its meaning or a key its name.
# Files of the formats before the last change, which renamed the keys of OLD_KEYS, are still read.
FORMATS = {1: 5, 2: 6, 3: 6, "segmenter": 5}
FORMATS_0_1_0 = {1: 4, 2: 5, 3: 5, "segmenter": 4}

# The phase of each stage whose network is sampled from or applied.
MAIN_PHASES = {1: "autoencoder", 2: "unet", 3: "unet", "segmenter": "segmenter"}


@dataclass
class Position:
    """The progress of a run."""

    step: int = 0  # optimizer steps
    sample_index: int = 0  # number of training samples that all ranks together have used
    schedule_start: int = 0  # the step at which the learning-rate schedule began
    started_from: str | None = None  # checkpoint of another run from which this run started
    due: str = ""  # work after this step that is not done yet (training/loop.py)
    resumed_from: str | None = None  # file name of the checkpoint of this run that --resume named
    rollbacks: int = 0  # number of resumes from a checkpoint of this run that was not its newest

    @property
    def age(self) -> tuple[int, int]:
        """Orders the checkpoints of a run: a later one has a higher age."""
        return self.rollbacks, self.step


@dataclass
class Best:
    """The best value of one validation score so far, and its step; NaN and None before the first.

    mode: "min" or "max", the better direction. without_improvement: validations since that step.
    """

    name: str
    mode: str
    value: float = math.nan
    step: int | None = None
    without_improvement: int = 0  # 0 in files of version 0.2.0

    def improved(self, scores: dict[str, float], step: int) -> bool:
        """Whether this step has a better score, which is then stored; NaN is never better."""
        if self.name not in scores:
            raise InputError(
                f"train.best_score: validation gives no '{self.name}', but {list(scores)}: choose"
                " one of these"
            )
        value = scores[self.name]
        better = value < self.value if self.mode == "min" else value > self.value
        if math.isnan(value) or not (better or math.isnan(self.value)):
            self.without_improvement += 1
            return False
        self.value, self.step, self.without_improvement = value, step, 0
        return True

    def ends_run(self, patience: int | None) -> bool:
        """Whether this number of validations in a row had no better score; None: never."""
        return patience is not None and self.without_improvement >= patience


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
class SwaState:
    """The mean of a module's weights at the ends of this number of epochs."""

    epochs: int
    module: StateDict


@dataclass
class PhaseState:
    """One trained module: its weights, optimizer, gradient scaler and averaged weights."""

    module: StateDict
    optimizer: dict[str, Any] | None  # None: the weights alone
    scaler: dict[str, Any]  # gradient scaler of 16-mixed; empty otherwise
    ema: dict[float, StateDict]  # averaged weights by half-life in optimizer steps
    swa: SwaState | None = None  # of train.swa; None before its first epoch

    def weights(self, half_life: float | None = None) -> StateDict:
        """The averaged weights of this half-life; by default those of train.swa, the first of
        train.ema_half_life or, without averages, the weights themselves.
        """
        if half_life is None:
            return self.swa.module if self.swa else next(iter(self.ema.values()), self.module)
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

    @property
    def weights_digest(self) -> str:
        """The digest of the weights that the state holds."""
        return weights_digest(self.module)

    def restore(self) -> VQVAE:
        """The autoencoder in evaluation mode and without gradients."""
        autoencoder = build_autoencoder(self.config)
        autoencoder.load_state_dict(self.module)
        return autoencoder.eval().requires_grad_(False)


@dataclass
class Checkpoint:
    """Everything that sampling and an exact resume need, or the weights that sampling needs.

    position, best: None for weights alone, whose only phase is the first of the stage.
    latent_scale, autoencoder: those of the latents of stages 2 and 3; None for other stages.
    conditions: what the label maps of the training were like.
    """

    config: Config
    position: Position | None
    best: Best | None
    phases: dict[str, PhaseState]
    latent_scale: LatentScale | None = None
    autoencoder: AutoencoderState | None = None
    interval: IntervalState | None = None  # None in files of weights alone and of version 0.2.0
    conditions: Ranges | None = None  # of stages 2 and 3; None in files of version 0.2.0
    path: Path | None = field(default=None, compare=False)  # the file it was loaded from

    def weights(self, half_life: float | None = None) -> StateDict:
        """The weights to sample from, or to apply; half_life as in PhaseState.weights."""
        return self.phases[MAIN_PHASES[self.config.stage]].weights(half_life)

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
                f"{self.path}: is of stage {self.config.stage}, where a checkpoint of stage"
                f" {stage} is needed: give another"
            )

    def weights_alone(
        self, half_life: float | None = None, dtype: torch.dtype = torch.float32
    ) -> "Checkpoint":
        """The weights that sampling needs, without optimizer, discriminator and position.

        half_life: as in PhaseState.weights. dtype: float16 rounds the weights of layers, and with
        them the digest of the autoencoder; biases and codebooks stay float32.
        """
        name = MAIN_PHASES[self.config.stage]
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
        contents = {"format": FORMATS[self.config.stage], **values_of(self)}
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
        file_stage = config.get("stage") if isinstance(config, dict) else None
        file_format = contents.get("format") if isinstance(contents, dict) else None
        if not isinstance(file_stage, int | str) or not isinstance(file_format, int):
            raise InputError(f"{path}: not a tubesynth checkpoint (no format or config in it)")
        formats = [f[file_stage] for f in (FORMATS_0_1_0, FORMATS) if file_stage in list(f)]
        if file_format not in formats:
            raise InputError(
                f"{path}: format {file_format} of stage {file_stage}, this version reads"
                f" {' and '.join(map(str, formats)) or 'no such stage'}: use the version of"
                " tubesynth that wrote it"
            )
        checkpoint = from_values(cls, {**contents, "path": None}, path, "")
        checkpoint.path = path
        for key in ("latent_scale", "autoencoder"):
            is_needed = file_stage in (2, 3)
            problem = "is missing" if is_needed else f"is no part of stage {file_stage}"
            require((getattr(checkpoint, key) is not None) == is_needed, path, key, problem)
        check(checkpoint)
        if stage == 1 and checkpoint.autoencoder is not None:
            return checkpoint._autoencoder_alone()
        if stage is not None:
            checkpoint.require_stage(stage)
        return checkpoint

    @staticmethod
    def read_position(path: Path) -> Position:
        """The position of a run's checkpoint, without reading its weights; damage is InputError."""
        return from_values(Position, read_value(path, "position"), path, "position")

    def _autoencoder_alone(self) -> "Checkpoint":
        """The stage-1 checkpoint of the weights of this checkpoint's autoencoder."""
        assert self.autoencoder is not None
        phases = {MAIN_PHASES[1]: PhaseState(self.autoencoder.module, None, {}, {})}
        return Checkpoint(self.autoencoder.config, None, None, phases, path=self.path)


def weights_digest(weights: StateDict) -> str:
    """The first 16 hex digits of the SHA-256 of a module's weights, in float32."""
    return tensors_sha256({name: _as_float32(w) for name, w in weights.items()})[:16]


def _rounded(weights: StateDict, dtype: torch.dtype) -> StateDict:
    """The weights of layers in a dtype. The others are few, and counts may exceed float16."""
    return {n: w.to(dtype) if n.endswith("weight") else w for n, w in weights.items()}


def _as_float32(weight: Tensor) -> Tensor:
    return weight.float() if weight.dtype == torch.float16 else weight
