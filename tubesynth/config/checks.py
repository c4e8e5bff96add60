"""Checks that the values of a config fit each other; every error names key, value and remedy.

strict.py has already checked keys and types. Each function checks one section and calls `require`.
"""

from tubesynth.config.data_checks import check_data, check_multiples
from tubesynth.config.labels import check_label_map, check_scheme
from tubesynth.config.limits import Require, check_limits, check_widths
from tubesynth.config.schema import (
    DIFFUSION_SAMPLERS,
    FLOW_SOLVERS,
    RESTARTS,
    AutoencoderConfig,
    Config,
    LatentConfig,
    SamplingConfig,
    SegmenterConfig,
    Stage1Config,
    Stage2Config,
    half_lives,
    uses_perceptual,
)
from tubesynth.config.unet_checks import check_unet
from tubesynth.runtime.errors import InputError

LARGEST_SHIFT = 100  # of times of a solver; beyond it all steps but the last are in the noise
PERCEPTUAL_LEAST_SIDE = 31  # voxels: the smallest input of AlexNet's last pooling


def requirement(source: str) -> Require:
    """A `require` with the source, such as the path of the config, before each message."""

    def require(condition: bool, message: str) -> None:
        if not condition:
            raise InputError(f"{source}: {message}")

    return require


def check(config: Config, source: str) -> None:
    """InputError where values contradict each other, with key, value and remedy."""
    require = requirement(source)
    require(config.dim in (2, 3), f"dim: expected 2 or 3, got {config.dim}")
    check_seed(config.seed, "seed", require)
    check_limits(config, require)
    check_scheme(config.labels, source)
    if config.data.label_map is not None:
        num_classes = config.labels.num_classes
        check_label_map(config.data.label_map, num_classes, f"{source}: data.label_map")
    check_data(config.data, config.dim, require)
    check_train(config, require)
    if isinstance(config, Stage1Config):
        require(
            config.train.ema_half_life is None,
            "train.ema_half_life: stage 1 keeps no averaged weights: leave it out",
        )
        check_autoencoder(config.autoencoder, require)
        check_decoder_condition(config, require)
        check_losses(config, require)
        check_multiples(config.data, config.autoencoder.factor, "the f of the autoencoder", require)
    else:
        require(
            not config.train.frozen_encoder,
            "train.frozen_encoder: stage 1 alone has an encoder: leave it out",
        )
    if isinstance(config, SegmenterConfig):
        require(config.dim == 3, f"dim: {config.dim}, but the segmenter is for volumes: 3")
        check_widths(config.segmenter, "segmenter", ("channels",), require)
        factor = 2 ** (len(config.segmenter.channels) - 1)
        check_multiples(config.data, factor, "segmenter.channels", require)
    if isinstance(config, Stage2Config):
        require(
            config.data.crop is None,
            "data.crop: stage 2 trains on whole volumes: remove it or set null",
        )
        check_latents(config.latents, require)
        check_unet(config, require)
        check_objective(config, require)
        check_sampling(config, config.sampling, source)


def check_seed(seed: int, key: str, require: Require) -> None:
    require(0 <= seed < 2**63, f"{key}: {seed}: expected a whole number from 0 to below 2^63")


def check_train(config: Config, require: Require) -> None:
    """Lengths, intervals, the best score, averaged weights and restarts."""
    train = config.train
    for key in (
        "epochs",
        "accumulate",
        "log_every",
        "validate_every",
        "panel_every",
        "panel_cases",
        "save_every",
    ):
        require(getattr(train, key) >= 1, f"train.{key}: must be at least 1")
    for key in ("learning_rate", "adam_eps"):
        require(getattr(train, key) > 0, f"train.{key}: {getattr(train, key)}, not above 0")
    require(
        0 <= train.learning_rate_min <= train.learning_rate,
        f"train.learning_rate_min: {train.learning_rate_min}: expected 0 to train.learning_rate,"
        f" {train.learning_rate}",
    )
    require(
        train.warmup_start is None or 0 <= train.warmup_start <= 1,
        f"train.warmup_start: a share of the learning rate, 0 to 1, got {train.warmup_start}",
    )
    require(
        train.schedule != "minimum" or train.learning_rate_min > 0,
        "train.learning_rate_min: 0, but train.schedule=minimum trains with it: raise it",
    )
    for key in ("warmup_steps", "keep", "max_bad_steps"):
        value = getattr(train, key)
        require(value is None or value >= 0, f"train.{key}: {value}, below 0")
    require(
        train.patience is None or train.patience >= 1,
        f"train.patience: {train.patience}, below 1: a number of validations, or null to train all"
        " epochs",
    )
    require(
        train.gradient_clip is None or train.gradient_clip >= 0,
        f"train.gradient_clip: {train.gradient_clip}, below 0: give a norm, or 0 for no clipping",
    )
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
    if swa := train.swa:
        require(
            isinstance(config, Stage2Config),
            f"train.swa: averages the weights of stages 2 and 3, and this is stage {config.stage}:"
            " leave it out",
        )
        require(
            1 <= swa.from_epoch <= train.epochs,
            f"train.swa.from_epoch: {swa.from_epoch}, not 1 to train.epochs, {train.epochs}",
        )
        rate, epochs = swa.learning_rate, swa.annealing_epochs
        require(rate > 0, f"train.swa.learning_rate: {rate}, not above 0")
        require(epochs >= 0, f"train.swa.annealing_epochs: {epochs}, below 0")
    for item in train.restart:
        require(
            item in RESTARTS, f"train.restart: '{item}' is unknown: choose from {list(RESTARTS)}"
        )


def check_decoder_condition(config: Stage1Config, require: Require) -> None:
    model = config.autoencoder
    require(
        model.decoder_condition == "none" or config.data.token_step_mm is not None,
        f"data.token_step_mm: not set, but autoencoder.decoder_condition {model.decoder_condition}"
        " needs vessel tokens: give the length between two of them in mm, e.g. 1.0",
    )
    require(
        model.decoder_condition != "none" or not model.contrast_pool,
        "autoencoder.contrast_pool: true, but autoencoder.decoder_condition none has no vessels to"
        " give a contrast: set it to vessels or labels",
    )
    require(
        0 <= model.condition_dropout < 1,
        f"autoencoder.condition_dropout: expected 0 to below 1, got {model.condition_dropout}",
    )


def check_autoencoder(model: AutoencoderConfig, require: Require) -> None:
    """Levels and quantizer."""
    widths = ("channels", "residual_channels", "embedding_dim")
    check_widths(model, "autoencoder", widths, require)
    for key in ("num_residual_layers", "commitment", "revive_after"):
        require(getattr(model, key) >= 0, f"autoencoder.{key}: {getattr(model, key)}, below 0")
    require(
        len(model.channels) == len(model.residual_channels),
        "autoencoder.residual_channels: as many entries as autoencoder.channels",
    )
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


def check_losses(config: Stage1Config, require: Require) -> None:
    """The losses of stage 1."""
    losses, data = config.losses, config.data
    check_widths(config.discriminator, "discriminator", ("channels", "num_layers"), require)
    start = losses.adversarial_from_step
    require(start >= 0, f"losses.adversarial_from_step: {start}, below 0")
    for key in (
        *("l1", "l2", "vessel_l1", "spectral"),
        *("adversarial", "discriminator", "feature_matching", "perceptual"),
    ):
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
        losses.adversarial_weighting == "fixed" or not config.train.compile,
        f"losses.adversarial_weighting: {losses.adversarial_weighting} needs several backward"
        " passes through the graph, which train.compile does not allow: set fixed, or"
        " train.compile=false",
    )
    slices = losses.perceptual_slices
    require(
        0 < slices < 1 or (slices >= 1 and slices == int(slices)),
        "losses.perceptual_slices: expected a whole number of at least 1, or a share between 0 and"
        f" 1, got {slices}",
    )
    smallest = min(data.crop or data.resolution)
    require(
        not uses_perceptual(losses) or smallest >= PERCEPTUAL_LEAST_SIDE,
        f"losses.perceptual: slices need {PERCEPTUAL_LEAST_SIDE} voxels a side, data.crop or"
        f" data.resolution has {smallest}",
    )


def check_latents(latents: LatentConfig, require: Require) -> None:
    require(latents.variants >= 1, "latents.variants: must be at least 1")
    require(
        (latents.mean is None) == (latents.scaling_factor is None),
        f"latents.mean, scaling_factor: {latents.mean} and {latents.scaling_factor}: set both, or"
        " leave out both",
    )
    require(
        latents.scaling_factor is None or latents.scaling_factor > 0,
        f"latents.scaling_factor: {latents.scaling_factor}, not above 0",
    )


def check_objective(config: Stage2Config, require: Require) -> None:
    """The section that latent_mode names, flow or diffusion."""
    mode, flow, diffusion = config.latent_mode, config.flow, config.diffusion
    shared = config.objective
    for key in ("label_dropout", "vessel_dropout"):
        value = getattr(shared, key)
        require(0 <= value < 1, f"{mode}.{key}: expected 0 to below 1, got {value}")
    require(
        shared.vessel_weight > 0,
        f"{mode}.vessel_weight: {shared.vessel_weight} must be above 0 (1: no weighting)",
    )
    if mode == "flow":
        require(0 <= flow.sigma_min < 1, f"flow.sigma_min: {flow.sigma_min} is not in [0, 1)")
        require(flow.offset_noise >= 0, f"flow.offset_noise: {flow.offset_noise}, below 0")
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
        "diffusion.prediction: with zero_terminal_snr the last timestep has no signal, and epsilon"
        " does not determine the data: set diffusion.prediction=v",
    )


def check_sampling(config: Stage2Config, sampling: SamplingConfig, source: str) -> None:
    """InputError where the sampling settings do not fit the model, with key, value and remedy."""
    require = requirement(source)
    solver, grid = sampling.solver, sampling.time_grid
    if config.latent_mode == "diffusion":
        solvers, count = DIFFUSION_SAMPLERS, config.diffusion.num_timesteps
    else:
        solvers, count = FLOW_SOLVERS, None
    require(
        solver in solvers,
        f"sampling.solver: {solver} cannot sample a {config.latent_mode} model: choose from"
        f" {', '.join(solvers)}",
    )
    require(
        type(sampling.steps) is int and sampling.steps >= 1,
        f"sampling.steps: {sampling.steps!r} must be a whole number, at least 1",
    )
    require(
        0 < sampling.shift <= LARGEST_SHIFT,
        f"sampling.shift: {sampling.shift} must be above 0, and at most {LARGEST_SHIFT}",
    )
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
            f"sampling.time_grid: {solver} chooses its own times: set sampling.time_grid=null, or a"
            " fixed-step solver",
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
        "sampling.timesteps: leading never visits the last timestep, where sampling starts with"
        " diffusion.zero_terminal_snr: set sampling.timesteps=trailing",
    )
