"""The configuration of a run: one frozen dataclass per section, with every default.

A YAML file names the values that differ from the defaults (loading.py); checks.py refuses values
that contradict each other. dataclasses.replace makes a changed config.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, cast, get_args

from tubesynth.volume.classes import NINE_CLASSES, LabelScheme

FlowSolver = Literal["euler", "midpoint", "heun", "rk4", "adams", "dopri5"]
DiffusionSampler = Literal["ddpm", "ddim"]
FLOW_SOLVERS, DIFFUSION_SAMPLERS = get_args(FlowSolver), get_args(DiffusionSampler)

Precision = Literal["auto", "32", "bf16-mixed", "16-mixed"]

# The items of train.restart: a run with the weights of another run may restart them.
RESTARTS = ("schedule", "epochs", "optimizers")


@dataclass(frozen=True)
class AugmentConfig:
    flip: float = 0.0  # probability of a flip: see convention
    rotate90: float = 0.0  # probability of quarter turns: see convention
    intensity: float = 0.0  # probability of a scale and, independently, of a shift
    intensity_scale: float = 0.1  # s: the factor is uniform in [1 - s, 1 + s]
    intensity_shift: float = 0.05  # s: the offset is uniform in [-s, s], in units of the window
    # per_axis: flips of each axis, independently; turns in one plane that keeps shape and spacing.
    # published: a flip of one random axis; turns in each plane, independently, which exchange the
    # spacings of the sample. Shares of the samples that each changes: data/augment.py.
    convention: Literal["per_axis", "published"] = "per_axis"


@dataclass(frozen=True)
class DataConfig:
    root: str = "data/imagecas"  # holds training/ and validation/, each with images/ and labels/
    # Folders elsewhere, in place of those of root. Images without label_*_dir are images alone.
    image_train_dir: str | None = None
    image_val_dir: str | None = None
    label_train_dir: str | None = None
    label_val_dir: str | None = None
    resolution: list[int] = field(default_factory=lambda: [256, 256, 128])  # voxels x, y, z
    # mm. A range [[0.6, 0.6, 1.0], [0.8, 0.8, 1.2]]: drawn for each sample. null: that which fits
    # the whole image into the resolution. The U-Net is conditioned on the spacing of each case.
    spacing: list[float | list[float]] | None = field(default_factory=lambda: [0.7, 0.7, 1.05])
    # Spacings of each case, from the range by `seed`; the disk cache holds each.
    spacing_draws: int = 4
    hu_window: list[float] = field(default_factory=lambda: [-1000.0, 1000.0])  # HU -> [0, 1]
    antialias: bool = False  # low-pass filter images before their voxels become larger
    # {stored value: class} of label maps of another scheme, other values become 0; null: the values
    # are classes. Several values may be the vessel class.
    label_map: dict[int, int] | None = None
    token_step_mm: float | None = None  # arc length between vessel tokens; null: no tokens
    dataset_type: Literal["default", "cache", "persistent"] = "persistent"  # none | memory | disk
    cache_dir: str = "cache"
    num_workers: int = 2
    batch_size: int = 1  # per process and accumulation step
    crop: list[int] | None = None  # random crop for training; null: the whole volume
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def folders(self, split: str) -> tuple[Path, Path | None]:
        """(images, label maps or None) of training or validation."""
        name = "train" if split == "training" else "val"
        images: str | None = getattr(self, f"image_{name}_dir")
        labels: str | None = getattr(self, f"label_{name}_dir")
        of_root = Path(self.root) / split
        if images is None:
            return of_root / "images", Path(labels) if labels else of_root / "labels"
        return Path(images), Path(labels) if labels else None

    @property
    def spacing_range(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """mm: the smallest and the largest spacing, equal where it is fixed; None for null."""
        if self.spacing is None:
            return None
        is_range = any(isinstance(item, list) for item in self.spacing)
        low, high = cast(list[list[float]], self.spacing if is_range else [self.spacing] * 2)
        return tuple(low), tuple(high)

    @property
    def default_spacing(self) -> list[float] | None:
        """mm of results where none is asked for: the middle of a range; None: that of the input."""
        if self.spacing_range is None:
            return None
        return [(low + high) / 2 for low, high in zip(*self.spacing_range, strict=True)]


@dataclass(frozen=True)
class SwaConfig:
    """Stochastic weight averaging (Izmailov 2018, arXiv 1803.05407): the mean of the weights at the
    ends of the epochs from from_epoch on, which is scored and sampled from.
    """

    from_epoch: int
    learning_rate: float  # reached from train.schedule by half a cosine, then constant
    annealing_epochs: int = 10  # length of the half cosine, which starts with from_epoch


@dataclass(frozen=True)
class TrainConfig:
    epochs: int = 100
    learning_rate: float = 1e-4
    learning_rate_min: float = 0.0  # cosine ends there; the other phase's is in the same ratio
    warmup_steps: int = 0
    # Share of the learning rate at the first step of the warm-up; null: 1 / warmup_steps.
    warmup_start: float | None = None
    # cosine falls to learning_rate_min at the last step; minimum: learning_rate_min throughout.
    schedule: Literal["cosine", "constant", "minimum"] = "cosine"
    adam_eps: float = 1e-8
    gradient_clip: float | None = None  # largest norm of the gradient of one phase
    accumulate: int = 1  # batches per optimizer step
    # auto: bf16-mixed on a GPU that has bf16, else 32; a run that resumes keeps its own.
    precision: Precision = "auto"
    checkpointing: bool = False  # gradient checkpointing: less memory, more time
    deterministic: bool = False  # on a GPU too, where it is slower: docs/reliability.md
    # Of stage 1: train the decoder alone, so that latents, and a stage 2 of them, stay valid.
    frozen_encoder: bool = False
    channels_last: bool = False  # memory layout X, Y, Z, C: faster on some machines
    compile: bool = False  # torch.compile for training steps; same results to rounding
    # Half-lives of averaged weights in optimizer steps; null: no averaged weights. The first of a
    # list is scored and sampled from.
    ema_half_life: float | list[float] | None = None
    swa: SwaConfig | None = None  # of stages 2 and 3
    log_every: int = 10  # steps
    validate_every: int = 1  # epochs
    panel_every: int = 5  # epochs
    panel_cases: int = 1  # number of validation cases with panels, each with a fixed noise
    save_every: int = 5  # epochs; last.ckpt is also written at every validation
    best_score: str = "loss"  # the validation score that chooses best.ckpt: see BEST_SCORES
    # Validations in a row without a better best_score after which the run ends; null: never.
    patience: int | None = None
    # Newest periodic checkpoints (epoch_*.ckpt) that stay, besides last and best; null: all.
    keep: int | None = 2
    max_bad_steps: int = 20  # a run stops at more non-finite steps in a row
    # Items of RESTARTS that restart where --resume names a checkpoint of another run, or where the
    # list is another one than before in this run.
    restart: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class AutoencoderConfig:
    channels: list[int] = field(default_factory=lambda: [64, 128])  # one per level of stride 2
    residual_channels: list[int] = field(default_factory=lambda: [64, 128])
    num_residual_layers: int = 2
    embedding_dim: int = 8  # channels of the latents; fsq: one per entry of fsq_levels
    # codebook | codebook with the published start and update | fixed levels | Gaussian
    quantizer: Literal["ema_vq", "published_vq", "fsq", "kl"] = "ema_vq"
    # For ema_vq and published_vq: codebook_size, commitment, codebook_decay. For ema_vq:
    # revive_after.
    codebook_size: int = 8192
    commitment: float = 0.25
    codebook_decay: float = 0.5
    revive_after: int = 20  # a code unused in so many forward passes is replaced; 0: never
    fsq_levels: list[int] = field(default_factory=lambda: [8, 8, 8, 6, 5])  # per channel, for fsq
    kl_weight: float = 1e-6  # for kl: weight of the KL divergence in nats per latent cell
    # The anatomy at image resolution as input of the decoder: vessels as closeness and radius, or
    # these and the label map. Needs data.token_step_mm.
    decoder_condition: Literal["none", "vessels", "labels"] = "none"
    # Probabilities that a training image is decoded without its vessels and, independently,
    # without its label map; such an image can then be reconstructed without its anatomy.
    condition_dropout: float = 0.1
    # The decoder renders vessels with a contrast that is pooled from all latents of the image.
    contrast_pool: bool = False
    # he: for ReLU, and a constant gray image; published: PyTorch's default.
    initialization: Literal["he", "published"] = "he"

    @property
    def factor(self) -> int:
        """f: voxels per latent cell along each axis."""
        return 2 ** len(self.channels)


@dataclass(frozen=True)
class DiscriminatorConfig:
    channels: int = 32
    num_layers: int = 2
    learning_rate_ratio: float = 5.0  # times the autoencoder's rate (published: 1e-4 and 2e-5)
    # default: PyTorch's; published: normal weights of deviation 0.02.
    initialization: Literal["default", "published"] = "default"


@dataclass(frozen=True)
class AutoencoderLossConfig:
    """Weights of the loss terms (0: not computed) and their settings."""

    l1: float = 1.0
    l2: float = 0.0
    # L1/L2 weight of voxels within vessel_margin_mm of a vessel (at least one voxel of margin); all
    # others weigh 1.
    vessel_weight: float = 1.0
    vessel_margin_mm: float = 1.5
    vessel_l1: float = 0.0  # one more L1 term, with differences outside the vessel mask set to 0
    spectral: float = 1.0
    adversarial: float = 0.005
    adversarial_from_step: int = 0
    # As published: lsgan_leaky, whose scores pass a leaky ReLU, or wasserstein.
    adversarial_objective: Literal["lsgan", "hinge", "lsgan_leaky", "wasserstein"] = "lsgan"
    # adaptive: Esser 2021, eq. 7; adaptive_published: without the spectral term, and with a larger
    # lower bound of the gradient.
    adversarial_weighting: Literal["fixed", "adaptive", "adaptive_published"] = "fixed"
    discriminator: float = 1.0  # of the discriminator's own loss (published: that of adversarial)
    feature_matching: float = 0.0  # on the discriminator's features
    perceptual: float = 0.0  # without perceptual_files it is left out, with a warning
    perceptual_files: list[str] = field(default_factory=list)  # see models/perceptual.py
    # Per plane, volume and step; below 1: a share of the slices (published: 0.5).
    perceptual_slices: float = 8
    perceptual_slicing: Literal["random", "even"] = "random"
    # LPIPS expects [-1, 1]. false: it gets images in [0, 1], as published.
    perceptual_rescale: bool = True


@dataclass(frozen=True)
class LatentConfig:
    autoencoder: str | None = None  # file or name of a model of stage 1, or of one with its latents
    # Stored variants per case, and per spacing of a range; the first has no augmentation.
    variants: int = 1
    # The generator is trained on (latents - mean) * scaling_factor; null: on latents with the
    # measured mean and deviation of each channel removed.
    mean: float | None = None
    scaling_factor: float | None = None


@dataclass(frozen=True)
class UNetConfig:
    channels: list[int] = field(default_factory=lambda: [64, 128, 256, 512])
    num_res_blocks: int = 2
    attention_levels: list[int] = field(default_factory=lambda: [2, 3])
    # Width of an attention head, or one width per level (0 for a level without attention).
    head_channels: int | list[int] = 32
    # Of the label map, for SPADE: convolutions with label_channels; sampled: one-hot labels, one
    # voxel per latent cell; none: the model is not conditioned on label maps.
    label_encoder: Literal["convolutions", "sampled", "none"] = "convolutions"
    label_channels: list[int] = field(default_factory=lambda: [32, 64, 128])
    # full: each norm of the decoder has convolutions of its own from the label features to a hidden
    # map and from there to scale and shift; shared: the norms of a level share one hidden map, and
    # their convolutions have kernel 1.
    spade: Literal["full", "shared"] = "full"
    spade_hidden: int = 128  # channels of a hidden map
    # Layers, initialization and time code: this project's, or those of the published model.
    architecture: Literal["default", "published"] = "default"
    dropout: float = 0.0  # in the residual blocks
    attention_dropout: float = 0.0  # in the transformers of the published vessel attention
    # Cross-attention to the vessel tokens: plain, or biased by distance in units of the radius.
    vessel_attention: Literal["off", "plain", "distance"] = "off"
    vessel_levels: list[int] | None = None  # null: those of attention_levels
    vessel_channels: int = 256  # of an encoded token
    # SPADE is also conditioned on two fields: closeness to the nearest vessel, and its radius.
    vessel_fields: bool = False
    # false: SPADE gets background in place of vessels. The centrelines alone then condition on
    # vessels, which can be moved, narrowed or added without a new label map.
    label_map_vessels: bool = True


@dataclass(frozen=True)
class ObjectiveConfig:
    """Settings of both flow and diffusion."""

    loss: Literal["l1", "l2"] = "l1"
    # Probabilities that a training sample is not conditioned on its label map (with its vessel
    # class) and, independently, on its vessels (tokens and fields). Guidance needs both above 0.
    label_dropout: float = 0.0
    vessel_dropout: float = 0.0
    # Loss weight of latent cells with a vessel (published: 10); all others weigh 1.
    vessel_weight: float = 1.0
    # normalized: any vessel voxel marks its cell, and a case's mean weight is 1. published: the
    # voxel at the middle of a cell decides, in a mask dilated twice; weights are not normalized.
    vessel_weighting: Literal["normalized", "published"] = "normalized"


@dataclass(frozen=True)
class FlowConfig(ObjectiveConfig):
    sigma_min: float = 1e-5
    time_sampling: Literal["uniform", "logit_normal"] = "uniform"
    time_mean: float = 0.0  # mean of logit(t), for logit_normal; below 0: more noisy times
    time_std: float = 1.0
    # Timestep shift of SD3 (Esser 2024, eq. 23): sqrt(latent cells / reference latent cells).
    time_shift: float = 1.0
    coupling: Literal["independent", "optimal_transport"] = "independent"  # of noise and latents
    # Deviation of a number that is added to a whole channel of the noise: generative/flow.py.
    offset_noise: float = 0.0


@dataclass(frozen=True)
class DiffusionConfig(ObjectiveConfig):
    loss: Literal["l1", "l2"] = "l2"
    num_timesteps: int = 1000
    schedule: Literal["scaled_linear", "cosine"] = "scaled_linear"
    beta_start: float = 0.0015  # for scaled_linear, as beta_end
    beta_end: float = 0.0195
    prediction: Literal["epsilon", "v"] = "epsilon"
    zero_terminal_snr: bool = False  # the last timestep is pure noise, where sampling starts


@dataclass(frozen=True)
class SamplingConfig:
    solver: Literal[FlowSolver, DiffusionSampler] = "adams"  # docs/results.md, Adams
    steps: int = 12  # solver steps (ignored by dopri5)
    time_grid: list[float] | None = None  # times of a fixed-step solver; null: from steps and shift
    shift: float = 1.0  # above 1: shorter steps near the noise
    atol: float = 1e-4  # absolute tolerance of dopri5
    rtol: float = 1e-2
    eta: float = 0.0  # for ddim: 0 adds no noise, 1 adds the noise of ddpm
    timesteps: Literal["trailing", "leading"] = "trailing"  # visited by ddpm and ddim
    guidance_interval: list[float] = field(default_factory=lambda: [0.0, 1.0])  # times t


@dataclass(frozen=True)
class Config:
    stage: int
    dim: int = 3
    seed: int = 0
    labels: LabelScheme = NINE_CLASSES  # the classes of the label maps
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    # The validation scores that train.best_score may name, each with its better direction.
    BEST_SCORES: ClassVar[dict[str, Literal["min", "max"]]] = {"loss": "min"}


@dataclass(frozen=True)
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


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class ControlConfig:
    base: str | None = None  # file or name of a stage-2 model with the frozen weights
    condition: Literal["label", "vessel"] = "label"  # the whole label map, or its vessels alone


@dataclass(frozen=True)
class Stage3Config(Stage2Config):
    """latent_mode, its section (flow or diffusion) and unet must equal those of control.base."""

    control: ControlConfig = field(default_factory=ControlConfig)


@dataclass(frozen=True)
class SegmenterModelConfig:
    channels: list[int] = field(default_factory=lambda: [16, 32, 64, 128])  # one per level


@dataclass(frozen=True)
class SegmenterConfig(Config):
    BEST_SCORES = {"loss": "min", "dice": "max"}

    stage: Literal["segmenter"]
    segmenter: SegmenterModelConfig = field(default_factory=SegmenterModelConfig)
    synthetic: list[str] = field(default_factory=list)  # training data: outputs of synthesize
    without_real: bool = False  # train on synthetic cases alone; validate on real cases


STAGES = {1: Stage1Config, 2: Stage2Config, 3: Stage3Config, "segmenter": SegmenterConfig}


def vessel_levels(unet: UNetConfig) -> list[int]:
    """The U-Net levels with cross-attention to the vessel tokens."""
    if unet.vessel_attention == "off":
        return []
    return unet.attention_levels if unet.vessel_levels is None else unet.vessel_levels


def head_channels(unet: UNetConfig) -> list[int]:
    """The width of an attention head by level."""
    widths = unet.head_channels
    return widths if isinstance(widths, list) else [widths] * len(unet.channels)


def uses_labels(config: Stage2Config) -> bool:
    """Whether the U-Net or its ControlNet is conditioned on label maps."""
    return config.unet.label_encoder != "none" or isinstance(config, Stage3Config)


def uses_vessels(unet: UNetConfig) -> bool:
    """Whether the U-Net is conditioned on vessels in any form."""
    return unet.vessel_attention != "off" or unet.vessel_fields


def uses_perceptual(losses: AutoencoderLossConfig) -> bool:
    """Whether the perceptual term is computed: it has a weight, and the files of its network."""
    return losses.perceptual > 0 and len(losses.perceptual_files) > 0


def half_lives(setting: float | list[float] | None) -> list[float]:
    """train.ema_half_life as a list, empty where it is null."""
    return setting if isinstance(setting, list) else [] if setting is None else [setting]
