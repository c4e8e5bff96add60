"""The configuration of a run: one dataclass a section, with every default in sight.

A YAML file names what differs from the defaults; `section.key=value` on the command line goes on
top. strict.py checks keys and types, `check` below checks the values against each other. Only
commands, training/ and pipeline read this.

    config = load_config("configs/stage_1_3d_f4.yml", ["train.epochs=10"])
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, get_args

from tubesynth.errors import InputError
from tubesynth.strict import apply_overrides, build, read_yaml


@dataclass
class AugmentConfig:
    flip: float = 0.0  # probability, each axis on its own
    rotate90: float = 0.0  # probability of a quarter turn in a plane where it keeps the shape
    intensity: float = 0.0  # probability of a scale and, on its own, of a shift
    intensity_scale: float = 0.1  # factor drawn from 1 -+ this
    intensity_shift: float = 0.05  # offset drawn from -+ this, in units of the window


@dataclass
class DataConfig:
    root: str = "data/imagecas"  # holds training/ and validation/, each with images/ and labels/
    resolution: list[int] = field(default_factory=lambda: [256, 256, 128])  # voxels x, y, z
    spacing: list[float] = field(default_factory=lambda: [0.7, 0.7, 1.05])  # mm
    hu_window: list[float] = field(default_factory=lambda: [-1000.0, 1000.0])  # HU -> [0, 1]
    num_classes: int = 9
    vessel_class: int | None = None  # null: the highest class
    token_step_mm: float | None = None  # arc length between vessel tokens; null: no tokens
    dataset_type: Literal["default", "cache", "persistent"] = "persistent"  # none | memory | disk
    cache_dir: str = "cache"
    num_workers: int = 2
    batch_size: int = 1  # per process and accumulation step
    crop: list[int] | None = None  # random crop for training; null: the whole volume
    augment: AugmentConfig = field(default_factory=AugmentConfig)


@dataclass
class TrainConfig:
    epochs: int = 100
    learning_rate: float = 1e-4
    warmup_steps: int = 0
    schedule: Literal["cosine", "constant"] = "cosine"  # cosine falls to 0 at the last step
    gradient_clip: float | None = None  # largest norm of the gradient of one phase
    accumulate: int = 1  # batches per optimiser step
    precision: Literal["32", "bf16-mixed", "16-mixed"] = "32"
    checkpointing: bool = False  # recompute activations in the backward pass: less memory
    channels_last: bool = False  # in memory as X, Y, Z, C: faster on some machines
    compile: bool = False  # torch.compile for steps: they agree with the others to rounding
    # Optimiser steps; null: no averaged weights; of a list, the first is scored and sampled from.
    ema_half_life: float | list[float] | None = None
    log_every: int = 10  # steps
    validate_every: int = 1  # epochs
    panel_every: int = 5  # epochs
    panel_cases: int = 1  # the first of the validation cases, always with the same noise
    save_every: int = 5  # epochs; last.ckpt besides at every validation
    best_score: str = "loss"  # of validation; decides what best.ckpt is: see BEST_SCORES
    keep: int = 2  # periodic checkpoints that stay on disk
    max_bad_steps: int = 20  # non-finite steps in a row that are skipped before the run stops
    restart: list[str] = field(
        default_factory=list
    )  # on --resume with another config: see RESTARTS


PERCEPTUAL_LEAST_SIDE = 31  # voxels: AlexNet's last pooling needs them

FlowSolver = Literal["euler", "midpoint", "heun", "rk4", "dopri5"]
DiffusionSampler = Literal["ddpm", "ddim"]
FLOW_SOLVERS, DIFFUSION_SAMPLERS = get_args(FlowSolver), get_args(DiffusionSampler)

# What a run may start anew although it resumes another run's weights.
RESTARTS = ("schedule", "epochs", "optimisers")


@dataclass
class AutoencoderConfig:
    channels: list[int] = field(default_factory=lambda: [64, 128])  # one stride-2 level each
    residual_channels: list[int] = field(default_factory=lambda: [64, 128])
    num_residual_layers: int = 2
    embedding_dim: int = 8  # channels of the latent; fsq: as many as fsq_levels
    quantizer: Literal["ema_vq", "fsq", "kl"] = "ema_vq"  # codebook | fixed levels | Gaussian
    codebook_size: int = 8192  # this and the next three: ema_vq
    commitment: float = 0.25
    codebook_decay: float = 0.5
    revive_after: int = 20  # unused steps after which a code is drawn anew from the data; 0: never
    fsq_levels: list[int] = field(default_factory=lambda: [8, 8, 8, 6, 5])  # one a channel
    kl_weight: float = 1e-6  # times nats a latent cell
    vessel_mask_in_decoder: bool = False  # reconstructing then needs the label map too


@dataclass
class DiscriminatorConfig:
    channels: int = 32
    num_layers: int = 2
    learning_rate_ratio: float = 5.0  # times the generator's (published: 1e-4 against 0.2e-4)


@dataclass
class AutoencoderLossConfig:
    """Weights of the terms (0: not computed), and how they are made."""

    l1: float = 1.0
    l2: float = 0.0
    vessel_weight: float = 1.0  # of a voxel near a vessel in l1 and l2, others 1; 1: even
    vessel_margin_mm: float = 1.5  # "near": within this of the mask, at least one voxel
    spectral: float = 1.0
    adversarial: float = 0.005
    adversarial_from_step: int = 0
    adversarial_objective: Literal["lsgan", "hinge"] = "lsgan"
    adversarial_weighting: Literal["fixed", "adaptive"] = "fixed"  # adaptive: Esser 2021, eq. 7
    feature_matching: float = 0.0  # on the discriminator's features, while it is trained
    perceptual: float = 0.0  # needs perceptual_files
    perceptual_files: list[str] = field(default_factory=list)  # see models/perceptual.py
    perceptual_slices: int = 8  # of each plane and volume in a step
    perceptual_slicing: Literal["random", "even"] = "random"


@dataclass
class LatentConfig:
    autoencoder: str | None = None  # stage-1 checkpoint
    variants: int = 1  # augmented variants stored per case (1: the case as it is)


@dataclass
class UNetConfig:
    channels: list[int] = field(default_factory=lambda: [64, 128, 256, 512])
    num_res_blocks: int = 2
    attention_levels: list[int] = field(default_factory=lambda: [2, 3])
    head_channels: int = 32
    label_channels: list[int] = field(default_factory=lambda: [32, 64, 128])
    spade_hidden: int = 128
    dropout: float = 0.0
    # Cross-attention to the vessel tokens: plain, or biased by distance in units of the radius.
    vessel_attention: Literal["off", "plain", "distance"] = "off"
    vessel_levels: list[int] | None = None  # null: those of attention_levels
    vessel_channels: int = 256  # of an encoded token
    vessel_fields: bool = False  # distance and radius fields of the vessels join the label map


@dataclass
class ObjectiveConfig:
    """What flow and diffusion share."""

    loss: Literal["l1", "l2"] = "l1"
    # Shares of draws, on their own, that are trained without a condition (for guidance). The label
    # map is one, its vessel class included; tokens and vessel fields together are the other.
    label_dropout: float = 0.0
    vessel_dropout: float = 0.0
    vessel_weight: float = 1.0  # of latent cells that hold a vessel, to 1 (published: 10)


@dataclass
class FlowConfig(ObjectiveConfig):
    sigma_min: float = 1e-5
    time_sampling: Literal["uniform", "logit_normal"] = "uniform"
    time_mean: float = 0.0  # of logit(t), for logit_normal; below 0: more of the noisy times
    time_std: float = 1.0
    time_shift: float = 1.0  # sqrt of the ratio of cells to those that 1 is right for
    coupling: Literal["independent", "optimal_transport"] = "independent"  # noise to case


@dataclass
class DiffusionConfig(ObjectiveConfig):
    loss: Literal["l1", "l2"] = "l2"
    num_timesteps: int = 1000
    schedule: Literal["scaled_linear", "cosine"] = "scaled_linear"
    beta_start: float = 0.0015  # scaled_linear
    beta_end: float = 0.0195
    prediction: Literal["epsilon", "v"] = "epsilon"
    zero_terminal_snr: bool = False  # the last timestep is pure noise, as sampling starts from


@dataclass
class SamplingConfig:
    solver: Literal[FlowSolver, DiffusionSampler] = "dopri5"
    steps: int = 10  # all but dopri5
    time_grid: list[float] | None = None  # of a fixed-step solver, 0 to 1; null: steps and shift
    shift: float = 1.0  # above 1: shorter steps near the noise
    atol: float = 1e-4  # dopri5
    rtol: float = 1e-2
    eta: float = 0.0  # ddim: 0 adds no noise, 1 as much as ddpm
    timesteps: Literal["trailing", "leading"] = "trailing"  # which of them ddpm and ddim visit
    guidance_interval: list[float] = field(default_factory=lambda: [0.0, 1.0])  # of times t


@dataclass
class Config:
    stage: int
    dim: int = 3
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    # Scores of validation that may choose the best checkpoint, and which way is better.
    BEST_SCORES: ClassVar[dict[str, Literal["min", "max"]]] = {"loss": "min"}


@dataclass
class Stage1Config(Config):
    BEST_SCORES = {
        "loss": "min",
        "psnr": "max",
        "ssim": "max",
        "vessel_psnr": "max",
        "vessel_mae_hu": "min",
    }

    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    losses: AutoencoderLossConfig = field(default_factory=AutoencoderLossConfig)


@dataclass
class Stage2Config(Config):
    latent_mode: Literal["flow", "diffusion"] = "flow"
    latents: LatentConfig = field(default_factory=LatentConfig)
    unet: UNetConfig = field(default_factory=UNetConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    @property
    def objective(self) -> FlowConfig | DiffusionConfig:
        """The section that latent_mode names."""
        return self.flow if self.latent_mode == "flow" else self.diffusion


@dataclass
class ControlConfig:
    base: str | None = None  # stage-2 checkpoint, which stays as it is
    condition: Literal["label", "vessel"] = "label"  # the whole label map, or its vessels alone


@dataclass
class Stage3Config(Stage2Config):
    """unet, latent_mode and what belongs to it are those of control.base."""

    control: ControlConfig = field(default_factory=ControlConfig)


@dataclass
class SegmenterModelConfig:
    channels: list[int] = field(default_factory=lambda: [16, 32, 64, 128])  # halved in between


@dataclass
class SegmenterConfig(Config):
    BEST_SCORES = {"loss": "min", "dice": "max"}

    stage: Literal["segmenter"]
    segmenter: SegmenterModelConfig = field(default_factory=SegmenterModelConfig)


STAGES = {1: Stage1Config, 2: Stage2Config, 3: Stage3Config, "segmenter": SegmenterConfig}


def load_config(path: str | Path, overrides: list[str] = ()) -> Config:
    """Read, override, type and check a config; InputError names file and key."""
    content = apply_overrides(read_yaml(path), list(overrides))
    return config_from_plain(content, str(path))


def config_from_plain(content: dict, source: str) -> Config:
    """A checked config from nested plain values (a YAML file, or a checkpoint)."""
    stage = content.get("stage")
    if stage not in STAGES:
        raise InputError(f"{source}: stage: expected one of {list(STAGES)}, got {stage!r}")
    config = build(STAGES[stage], content, source)
    check(config, source)
    return config


def vessel_class(data: DataConfig) -> int:
    """The class index of the vessels: configured, never read off a volume."""
    return data.num_classes - 1 if data.vessel_class is None else data.vessel_class


def vessel_levels(unet: UNetConfig) -> list[int]:
    """The levels of the U-Net with cross-attention to the vessel tokens."""
    if unet.vessel_attention == "off":
        return []
    return unet.attention_levels if unet.vessel_levels is None else unet.vessel_levels


def uses_vessels(unet: UNetConfig) -> bool:
    """Whether the U-Net takes the vessel condition in any form."""
    return unet.vessel_attention != "off" or unet.vessel_fields


def half_lives(setting: float | list[float] | None) -> list[float]:
    """train.ema_half_life as a list, empty where it is null."""
    return setting if isinstance(setting, list) else [] if setting is None else [setting]


def check(config: Config, source: str) -> None:
    """InputError where values contradict each other, with key, value and remedy."""

    def require(condition: bool, message: str):
        if not condition:
            raise InputError(f"{source}: {message}")

    data, train = config.data, config.train
    require(config.dim in (2, 3), f"dim: expected 2 or 3, got {config.dim}")
    for key in ("resolution", "spacing", "crop"):
        value = getattr(data, key)
        if value is not None:
            require(
                len(value) == config.dim and min(value) > 0,
                f"data.{key}: expected {config.dim} positive numbers (the dim), got {value}",
            )
    low, high = data.hu_window if len(data.hu_window) == 2 else (0, 0)
    require(low < high, f"data.hu_window: expected [low, high], got {data.hu_window}")
    require(data.num_classes >= 2, f"data.num_classes: expected at least 2, got {data.num_classes}")
    require(
        0 < vessel_class(data) < data.num_classes,
        f"data.vessel_class: {data.vessel_class} is not a foreground class of {data.num_classes}",
    )
    for section, keys in (
        (data, ("batch_size",)),
        (
            train,
            (
                "epochs",
                "accumulate",
                "log_every",
                "validate_every",
                "panel_every",
                "panel_cases",
                "save_every",
            ),
        ),
    ):
        for key in keys:
            name = "data" if section is data else "train"
            require(getattr(section, key) >= 1, f"{name}.{key}: must be at least 1")
    require(
        train.best_score in config.BEST_SCORES,
        f"train.best_score: '{train.best_score}' is unknown: choose from"
        f" {list(config.BEST_SCORES)}",
    )
    averages = half_lives(train.ema_half_life)
    require(
        all(steps > 0 for steps in averages) and len(set(averages)) == len(averages),
        f"train.ema_half_life: expected numbers of steps above 0, no two alike, got {averages}",
    )
    for item in train.restart:
        require(
            item in RESTARTS, f"train.restart: '{item}' is unknown: choose from {list(RESTARTS)}"
        )
    require(
        data.token_step_mm is None or data.token_step_mm > 0,
        f"data.token_step_mm: expected a length in mm, got {data.token_step_mm}",
    )
    for key in ("flip", "rotate90", "intensity"):
        value = getattr(data.augment, key)
        require(0 <= value <= 1, f"data.augment.{key}: a probability, got {value}")

    if isinstance(config, Stage1Config):
        model = config.autoencoder
        require(
            len(model.channels) == len(model.residual_channels),
            "autoencoder.residual_channels: as many entries as autoencoder.channels",
        )
        check_quantizer(model, require)
        check_losses(config, require)
        factor = 2 ** len(model.channels)
        for key in ("resolution", "crop"):
            value = getattr(data, key)
            require(
                value is None or all(n % factor == 0 for n in value),
                f"data.{key}: {value} must be multiples of {factor} (the f of the autoencoder)",
            )
    if isinstance(config, SegmenterConfig):
        factor = 2 ** (len(config.segmenter.channels) - 1)
        for key in ("resolution", "crop"):
            value = getattr(data, key)
            require(
                value is None or all(n % factor == 0 for n in value),
                f"data.{key}: {value} must be multiples of {factor} (segmenter.channels)",
            )
    if isinstance(config, Stage2Config):
        require(
            data.crop is None, "data.crop: stage 2 trains on whole volumes: remove it or set null"
        )
        require(config.latents.variants >= 1, "latents.variants: must be at least 1")
        check_unet(config, require)
        check_objective(config, require)
        check_sampling(config, config.sampling, source)


def check_unet(config: Stage2Config, require: Callable[[bool, str], None]) -> None:
    """What the U-Net of stage 2 and its conditions need of each other."""
    unet, levels = config.unet, len(config.unet.channels)
    for key, found in (
        ("attention_levels", unet.attention_levels),
        ("vessel_levels", vessel_levels(unet)),
    ):
        for level in found:
            require(
                0 <= level < levels,
                f"unet.{key}: level {level} does not exist (levels 0 to {levels - 1})",
            )
            require(
                unet.channels[level] % unet.head_channels == 0,
                f"unet.head_channels: {unet.head_channels} does not divide the"
                f" {unet.channels[level]} channels of level {level}",
            )
    require(
        unet.vessel_attention != "distance" or unet.head_channels > 14,
        f"unet.head_channels: {unet.head_channels} leaves nothing beside the 14 channels of the"
        " distance bias: take at least 16, 32 to 64 are usual",
    )
    require(
        not uses_vessels(unet) or config.data.token_step_mm is not None,
        "data.token_step_mm: not set, but unet.vessel_attention or unet.vessel_fields needs"
        " vessel tokens: give the length between two of them in mm, e.g. 1.0",
    )


def check_objective(config: Stage2Config, require: Callable[[bool, str], None]) -> None:
    """What the settings of flow or diffusion need of each other and of the data."""
    mode, flow, diffusion = config.latent_mode, config.flow, config.diffusion
    shared = config.objective
    for key in ("label_dropout", "vessel_dropout"):
        value = getattr(shared, key)
        require(0 <= value < 1, f"{mode}.{key}: a share below 1, got {value}")
    require(
        shared.vessel_weight > 0,
        f"{mode}.vessel_weight: {shared.vessel_weight} must be above 0 (1: no weighting)",
    )
    if mode == "flow":
        require(0 <= flow.sigma_min < 1, f"flow.sigma_min: {flow.sigma_min} is not in [0, 1)")
        for key in ("time_std", "time_shift"):
            require(getattr(flow, key) > 0, f"flow.{key}: must be above 0")
        require(
            flow.coupling == "independent" or config.data.batch_size > 1,
            "flow.coupling: optimal_transport permutes the noise within a batch, and"
            " data.batch_size is 1: raise it, or set flow.coupling=independent",
        )
        return
    count, first, last = diffusion.num_timesteps, diffusion.beta_start, diffusion.beta_end
    require(count >= 2, f"diffusion.num_timesteps: {count} is fewer than 2")
    require(
        0 < first <= last < 1,
        f"diffusion.beta_start, beta_end: expected 0 < start <= end < 1, got {first} and {last}",
    )
    require(
        not (diffusion.zero_terminal_snr and diffusion.prediction == "epsilon"),
        "diffusion.prediction: with zero_terminal_snr the last timestep holds no signal, and"
        " epsilon says nothing about it: set diffusion.prediction=v",
    )


def check_sampling(config: Stage2Config, sampling: SamplingConfig, source: str) -> None:
    """InputError where a way to sample does not fit the model, with key, value and remedy."""

    def require(condition: bool, message: str):
        if not condition:
            raise InputError(f"{source}: {message}")

    solver, grid = sampling.solver, sampling.time_grid
    if config.latent_mode == "diffusion":
        fitting, count = DIFFUSION_SAMPLERS, config.diffusion.num_timesteps
    else:
        fitting, count = FLOW_SOLVERS, None
    require(
        solver in fitting,
        f"sampling.solver: {solver} cannot sample a {config.latent_mode} model: choose from"
        f" {', '.join(fitting)}",
    )
    require(sampling.steps >= 1, f"sampling.steps: {sampling.steps} must be at least 1")
    require(sampling.shift > 0, f"sampling.shift: {sampling.shift} must be above 0")
    for key in ("atol", "rtol"):
        require(getattr(sampling, key) > 0, f"sampling.{key}: must be above 0")
    if grid is not None:
        rising = all(a < b for a, b in zip(grid[:-1], grid[1:], strict=True))
        require(
            len(grid) >= 2 and grid[0] == 0 and grid[-1] == 1 and rising,
            f"sampling.time_grid: expected rising times from 0 to 1, got {grid}",
        )
        require(
            solver in FLOW_SOLVERS and solver != "dopri5",
            f"sampling.time_grid: {solver} chooses its own times: set it to null, or a fixed-step"
            " solver",
        )
    interval = sampling.guidance_interval
    require(
        len(interval) == 2 and 0 <= interval[0] < interval[1] <= 1,
        f"sampling.guidance_interval: expected [low, high] within 0 and 1, got {interval}",
    )
    if count is None:
        return
    require(
        sampling.steps <= count,
        f"sampling.steps: {sampling.steps} are more than diffusion.num_timesteps, {count}",
    )
    require(0 <= sampling.eta <= 1, f"sampling.eta: {sampling.eta} is not in [0, 1]")
    require(
        sampling.timesteps == "trailing" or not config.diffusion.zero_terminal_snr,
        "sampling.timesteps: leading never visits the last timestep, which zero_terminal_snr made"
        " the one to start from: set sampling.timesteps=trailing",
    )


def check_quantizer(model: AutoencoderConfig, require: Callable[[bool, str], None]) -> None:
    """What the settings of a quantiser need of each other."""
    require(
        model.codebook_size >= 2,
        f"autoencoder.codebook_size: must be at least 2, got {model.codebook_size}",
    )
    require(
        0 <= model.codebook_decay < 1,
        f"autoencoder.codebook_decay: expected 0 to below 1, got {model.codebook_decay}",
    )
    require(
        model.kl_weight >= 0, f"autoencoder.kl_weight: a weight of 0 or more, got {model.kl_weight}"
    )
    if model.quantizer == "fsq":
        levels, channels = model.fsq_levels, model.embedding_dim
        require(
            len(levels) > 0 and min(levels) >= 3,
            f"autoencoder.fsq_levels: expected numbers of at least 3, got {levels}",
        )
        require(
            len(levels) == channels,
            f"autoencoder.embedding_dim: {channels}, but each of the {len(levels)} entries of"
            f" autoencoder.fsq_levels {levels} is a channel: set embedding_dim to {len(levels)}",
        )


def check_losses(config: Stage1Config, require: Callable[[bool, str], None]) -> None:
    """What the losses of stage 1 need of each other and of the data."""
    losses, data = config.losses, config.data
    for key in ("l1", "l2", "spectral", "adversarial", "feature_matching", "perceptual"):
        value = getattr(losses, key)
        require(value >= 0, f"losses.{key}: a weight of 0 or more, got {value}")
    require(losses.l1 + losses.l2 > 0, "losses.l1: 0, and so is losses.l2: set one of them")
    require(
        losses.vessel_weight > 0,
        f"losses.vessel_weight: must be above 0, got {losses.vessel_weight}",
    )
    require(
        losses.vessel_margin_mm >= 0,
        f"losses.vessel_margin_mm: a length in mm, got {losses.vessel_margin_mm}",
    )
    require(
        losses.feature_matching == 0 or losses.adversarial > 0,
        "losses.feature_matching: needs the discriminator: set losses.adversarial above 0",
    )
    require(
        losses.perceptual == 0 or len(losses.perceptual_files) > 0,
        "losses.perceptual_files: name LPIPS's or RadImageNet's weights, or set losses.perceptual=0"
        " and use losses.feature_matching, which needs none",
    )
    require(
        losses.adversarial_weighting == "fixed" or not config.train.compile,
        "losses.adversarial_weighting: adaptive goes through the graph more than once, which a"
        " compiled one does not allow: set fixed, or train.compile=false",
    )
    require(losses.perceptual_slices >= 1, "losses.perceptual_slices: must be at least 1")
    smallest = min(data.crop or data.resolution)
    require(
        losses.perceptual == 0 or smallest >= PERCEPTUAL_LEAST_SIDE,
        f"losses.perceptual: slices need {PERCEPTUAL_LEAST_SIDE} voxels a side, data.crop or"
        f" data.resolution has {smallest}",
    )
