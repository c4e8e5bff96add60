"""The configuration of a run: one dataclass a section, with every default in sight.

A YAML file names what differs from the defaults (config_loading.py); whether values fit each other
is asked by config_checks.py. Only commands, training/ and pipeline read this.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

from tubesynth.volume.classes import NINE_CLASSES, LabelScheme

FlowSolver = Literal["euler", "midpoint", "heun", "rk4", "dopri5"]
DiffusionSampler = Literal["ddpm", "ddim"]
FLOW_SOLVERS, DIFFUSION_SAMPLERS = get_args(FlowSolver), get_args(DiffusionSampler)

# What a run may restart although it resumes another run's weights.
RESTARTS = ("schedule", "epochs", "optimizers")


@dataclass(frozen=True)
class AugmentConfig:
    flip: float = 0.0  # probability, each axis on its own
    rotate90: float = 0.0  # probability of a quarter turn in a plane where it keeps the shape
    intensity: float = 0.0  # probability of a scale and, on its own, of a shift
    intensity_scale: float = 0.1  # factor drawn from 1 -+ this
    intensity_shift: float = 0.05  # offset drawn from -+ this, in units of the window


@dataclass(frozen=True)
class DataConfig:
    root: str = "data/imagecas"  # holds training/ and validation/, each with images/ and labels/
    resolution: list[int] = field(default_factory=lambda: [256, 256, 128])  # voxels x, y, z
    spacing: list[float] = field(default_factory=lambda: [0.7, 0.7, 1.05])  # mm
    hu_window: list[float] = field(default_factory=lambda: [-1000.0, 1000.0])  # HU -> [0, 1]
    token_step_mm: float | None = None  # arc length between vessel tokens; null: no tokens
    dataset_type: Literal["default", "cache", "persistent"] = "persistent"  # none | memory | disk
    cache_dir: str = "cache"
    num_workers: int = 2
    batch_size: int = 1  # per process and accumulation step
    crop: list[int] | None = None  # random crop for training; null: the whole volume
    augment: AugmentConfig = field(default_factory=AugmentConfig)


@dataclass(frozen=True)
class TrainConfig:
    epochs: int = 100
    learning_rate: float = 1e-4
    warmup_steps: int = 0
    schedule: Literal["cosine", "constant"] = "cosine"  # cosine falls to 0 at the last step
    gradient_clip: float | None = None  # largest norm of the gradient of one phase
    accumulate: int = 1  # batches per optimizer step
    precision: Literal["32", "bf16-mixed", "16-mixed"] = "32"
    checkpointing: bool = False  # recompute activations in the backward pass: less memory
    channels_last: bool = False  # in memory as X, Y, Z, C: faster on some machines
    compile: bool = False  # torch.compile for steps: they agree with the others to rounding
    # Optimizer steps; null: no averaged weights; of a list, the first is scored and sampled from.
    ema_half_life: float | list[float] | None = None
    log_every: int = 10  # steps
    validate_every: int = 1  # epochs
    panel_every: int = 5  # epochs
    panel_cases: int = 1  # the first of the validation cases, always with the same noise
    save_every: int = 5  # epochs; last.ckpt besides at every validation
    best_score: str = "loss"  # of validation; decides what best.ckpt is: see BEST_SCORES
    keep: int = 2  # periodic checkpoints that stay on disk
    max_bad_steps: int = 20  # non-finite steps in a row that are skipped before the run stops
    # What restarts on --resume with another config: some of RESTARTS.
    restart: list[str] = field(default_factory=list)


@dataclass(frozen=True)
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

    @property
    def factor(self) -> int:
        """f: voxels per latent cell along each axis."""
        return 2 ** len(self.channels)


@dataclass(frozen=True)
class DiscriminatorConfig:
    channels: int = 32
    num_layers: int = 2
    learning_rate_ratio: float = 5.0  # times the generator's (published: 1e-4 against 0.2e-4)


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class LatentConfig:
    autoencoder: str | None = None  # stage-1 checkpoint
    variants: int = 1  # augmented variants stored per case (1: the case as it is)


@dataclass(frozen=True)
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
    vessel_fields: bool = False  # closeness and radius fields of the vessels join the label map
    # false: SPADE sees background where the label map has vessels, so that they come from their
    # centreline alone and may be moved, narrowed or drawn without touching the label map.
    label_map_vessels: bool = True


@dataclass(frozen=True)
class ObjectiveConfig:
    """What flow and diffusion share."""

    loss: Literal["l1", "l2"] = "l1"
    # Shares of draws, on their own, that are trained without a condition (for guidance). The label
    # map is one, its vessel class included; tokens and vessel fields together are the other.
    label_dropout: float = 0.0
    vessel_dropout: float = 0.0
    vessel_weight: float = 1.0  # of latent cells that hold a vessel, to 1 (published: 10)


@dataclass(frozen=True)
class FlowConfig(ObjectiveConfig):
    sigma_min: float = 1e-5
    time_sampling: Literal["uniform", "logit_normal"] = "uniform"
    time_mean: float = 0.0  # of logit(t), for logit_normal; below 0: more of the noisy times
    time_std: float = 1.0
    time_shift: float = 1.0  # sqrt of the ratio of cells to those that 1 is right for
    coupling: Literal["independent", "optimal_transport"] = "independent"  # noise to case


@dataclass(frozen=True)
class DiffusionConfig(ObjectiveConfig):
    loss: Literal["l1", "l2"] = "l2"
    num_timesteps: int = 1000
    schedule: Literal["scaled_linear", "cosine"] = "scaled_linear"
    beta_start: float = 0.0015  # scaled_linear
    beta_end: float = 0.0195
    prediction: Literal["epsilon", "v"] = "epsilon"
    zero_terminal_snr: bool = False  # the last timestep is pure noise, as sampling starts from


@dataclass(frozen=True)
class SamplingConfig:
    solver: Literal[FlowSolver, DiffusionSampler] = "midpoint"  # docs/results.md, Solvers
    steps: int = 10  # all but dopri5
    time_grid: list[float] | None = None  # of a fixed-step solver, 0 to 1; null: steps and shift
    shift: float = 1.0  # above 1: shorter steps near the noise
    atol: float = 1e-4  # dopri5
    rtol: float = 1e-2
    eta: float = 0.0  # ddim: 0 adds no noise, 1 as much as ddpm
    timesteps: Literal["trailing", "leading"] = "trailing"  # which of them ddpm and ddim visit
    guidance_interval: list[float] = field(default_factory=lambda: [0.0, 1.0])  # of times t


@dataclass(frozen=True)
class Config:
    stage: int
    dim: int = 3
    seed: int = 0
    labels: LabelScheme = NINE_CLASSES  # the classes of the label maps
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    # Scores of validation that may choose the best checkpoint, and which way is better.
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
    base: str | None = None  # stage-2 checkpoint, which stays as it is
    condition: Literal["label", "vessel"] = "label"  # the whole label map, or its vessels alone


@dataclass(frozen=True)
class Stage3Config(Stage2Config):
    """unet, latent_mode and what belongs to it are those of control.base."""

    control: ControlConfig = field(default_factory=ControlConfig)


@dataclass(frozen=True)
class SegmenterModelConfig:
    channels: list[int] = field(default_factory=lambda: [16, 32, 64, 128])  # halved in between


@dataclass(frozen=True)
class SegmenterConfig(Config):
    BEST_SCORES = {"loss": "min", "dice": "max"}

    stage: Literal["segmenter"]
    segmenter: SegmenterModelConfig = field(default_factory=SegmenterModelConfig)
    synthetic: list[str] = field(default_factory=list)  # folders of synthesize, to train on too
    without_real: bool = False  # train on these alone; scores are of real cases always


STAGES = {1: Stage1Config, 2: Stage2Config, 3: Stage3Config, "segmenter": SegmenterConfig}


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
