"""Checks that the values of a config fit each other; every error names key, value and remedy.

strict.py has already checked keys and types. Each function checks one section and calls `require`.
"""

from tubesynth.config.data_checks import check_data, check_multiples
from tubesynth.config.labels import check_label_map, check_scheme
from tubesynth.config.limits import Require, check_ranges
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
from tubesynth.config.strict import flatten, to_plain
from tubesynth.config.unet_checks import check_unet
from tubesynth.runtime.errors import InputError

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
    check_ranges(flatten(to_plain(config)), require)
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
    require(
        train.learning_rate_min <= train.learning_rate,
        f"train.learning_rate_min: {train.learning_rate_min}: expected 0 to train.learning_rate,"
        f" {train.learning_rate}",
    )
    require(
        train.schedule != "minimum" or train.learning_rate_min > 0,
        "train.learning_rate_min: 0, but train.schedule=minimum trains with it: raise it",
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


def check_autoencoder(model: AutoencoderConfig, require: Require) -> None:
    """Levels and quantizer."""
    require(
        len(model.channels) == len(model.residual_channels),
        "autoencoder.residual_channels: as many entries as autoencoder.channels",
    )
    if model.quantizer == "fsq":
        levels, channels = model.fsq_levels, model.embedding_dim
        require(
            len(levels) == channels,
            f"autoencoder.embedding_dim: {channels}, but each of the {len(levels)} entries of"
            f" autoencoder.fsq_levels {levels} is a channel: set embedding_dim to {len(levels)}",
        )


def check_losses(config: Stage1Config, require: Require) -> None:
    """The losses of stage 1."""
    losses, data = config.losses, config.data
    require(losses.l1 + losses.l2 > 0, "losses.l1: 0, and so is losses.l2: set one of them")
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
        slices < 1 or slices == int(slices),
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
    require(
        (latents.mean is None) == (latents.scaling_factor is None),
        f"latents.mean, scaling_factor: {latents.mean} and {latents.scaling_factor}: set both, or"
        " leave out both",
    )


def check_objective(config: Stage2Config, require: Require) -> None:
    """The section that latent_mode names, flow or diffusion."""
    flow, diffusion = config.flow, config.diffusion
    if config.latent_mode == "flow":
        require(
            flow.coupling == "independent" or config.data.batch_size > 1,
            "flow.coupling: optimal_transport permutes the noise within a batch, and"
            " data.batch_size is 1: raise it, or set flow.coupling=independent",
        )
        return
    first, last = diffusion.beta_start, diffusion.beta_end
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
        type(sampling.steps) is int,
        f"sampling.steps: {sampling.steps!r} must be a whole number, at least 1",
    )
    check_ranges({f"sampling.{key}": value for key, value in vars(sampling).items()}, require)
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
    require(
        sampling.timesteps == "trailing" or not config.diffusion.zero_terminal_snr,
        "sampling.timesteps: leading never visits the last timestep, where sampling starts with"
        " diffusion.zero_terminal_snr: set sampling.timesteps=trailing",
    )
