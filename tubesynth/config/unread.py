"""Settings that a run does not read because of other settings of its config."""

from collections.abc import Iterator

from tubesynth.config.differences import differences
from tubesynth.config.schema import (
    Config,
    SegmenterConfig,
    Stage1Config,
    Stage2Config,
    Stage3Config,
    uses_vessels,
)

# (whether the keys are not read, why, keys or sections)
Rule = tuple[bool, str, tuple[str, ...]]


def unread_settings(config: Config) -> Iterator[tuple[str, list[str]]]:
    """(reason, dotted keys): settings that are not the default and have no effect."""
    changed = differences(config, type(config)(config.stage))
    for is_unread, reason, names in _rules(config):
        sections = tuple(f"{name}." for name in names)
        keys = [key for key in changed if key in names or key.startswith(sections)]
        if is_unread and keys:
            yield reason, keys


def _rules(config: Config) -> Iterator[Rule]:
    data, train = config.data, config.train
    low_high = data.spacing_range
    is_range = low_high is not None and low_high[0] != low_high[1]
    yield not is_range, "data.spacing is no range", ("data.spacing_draws",)
    kind = data.dataset_type
    has_cache = kind == "persistent" or isinstance(config, Stage2Config)
    yield not has_cache, f"data.dataset_type is {kind}", ("data.cache_dir",)
    intensity = ("data.augment.intensity_scale", "data.augment.intensity_shift")
    yield data.augment.intensity == 0, "data.augment.intensity is 0", intensity
    schedule, warmup = train.schedule, ("train.warmup_steps", "train.warmup_start")
    reason = f"train.schedule is {schedule}"
    yield schedule == "constant", reason, ("train.learning_rate_min",)
    yield schedule == "minimum", reason, warmup
    yield train.warmup_steps == 0, "train.warmup_steps is 0", ("train.warmup_start",)
    if isinstance(config, Stage1Config):
        yield from _stage_1_rules(config)
    elif isinstance(config, Stage2Config):
        yield from _stage_2_rules(config)
    elif isinstance(config, SegmenterConfig):
        keys = ("train.checkpointing", "data.token_step_mm")
        yield True, "the segmenter has no use for them", keys


def _stage_1_rules(config: Stage1Config) -> Iterator[Rule]:
    model, losses = config.autoencoder, config.losses
    quantizer, reason = model.quantizer, f"autoencoder.quantizer is {model.quantizer}"
    of_codebook = ("codebook_size", "commitment", "codebook_decay", "revive_after")
    keys = tuple(f"autoencoder.{name}" for name in of_codebook)
    yield quantizer in ("fsq", "kl"), reason, keys
    yield quantizer == "published_vq", reason, ("autoencoder.revive_after",)
    yield quantizer != "fsq", reason, ("autoencoder.fsq_levels",)
    yield quantizer != "kl", reason, ("autoencoder.kl_weight",)
    reason = "autoencoder.decoder_condition is none"
    keys = ("autoencoder.condition_dropout", "data.token_step_mm")
    yield model.decoder_condition == "none", reason, keys
    of_discriminator = ("objective", "from_step", "weighting")
    keys = tuple(f"losses.adversarial_{name}" for name in of_discriminator)
    keys = (*keys, "losses.discriminator", "discriminator")
    yield losses.adversarial == 0, "losses.adversarial is 0", keys
    keys = tuple(f"losses.perceptual_{n}" for n in ("files", "slices", "slicing", "rescale"))
    yield losses.perceptual == 0, "losses.perceptual is 0", keys
    yield losses.vessel_weight == 1, "losses.vessel_weight is 1", ("losses.vessel_margin_mm",)


def _stage_2_rules(config: Stage2Config) -> Iterator[Rule]:
    mode, unet, sampling = config.latent_mode, config.unet, config.sampling
    other = "diffusion" if mode == "flow" else "flow"
    yield True, f"latent_mode is {mode}", (other,)
    variants = config.latents.variants == 1
    yield variants, "latents.variants is 1: the one without augmentation", ("data.augment",)
    is_stage_3 = isinstance(config, Stage3Config)
    keys = ("latents.mean", "latents.scaling_factor")
    yield is_stage_3, "stage 3 has the scale of control.base", keys
    has_attention = unet.vessel_attention != "off"
    keys = ("unet.vessel_channels", "unet.vessel_levels", "unet.attention_dropout")
    yield not has_attention, "unet.vessel_attention is off", keys
    reason = "the model is not conditioned on vessels"
    yield not uses_vessels(unet), reason, (f"{mode}.vessel_dropout",)
    reason = f"{mode}.vessel_weight is 1"
    yield config.objective.vessel_weight == 1, reason, (f"{mode}.vessel_weighting",)
    encoder, reason = unet.label_encoder, f"unet.label_encoder is {unet.label_encoder}"
    if not is_stage_3:  # a ControlNet has a label encoder of its own
        yield encoder != "convolutions", reason, ("unet.label_channels",)
        keys = ("unet.spade", "unet.spade_hidden", "unet.label_map_vessels")
        yield encoder == "none", reason, keys
    uniform = config.flow.time_sampling == "uniform"
    yield uniform, "flow.time_sampling is uniform", ("flow.time_mean", "flow.time_std")
    cosine = config.diffusion.schedule == "cosine"
    yield cosine, "diffusion.schedule is cosine", ("diffusion.beta_start", "diffusion.beta_end")
    solver, reason = sampling.solver, f"sampling.solver is {sampling.solver}"
    yield solver != "dopri5", reason, ("sampling.atol", "sampling.rtol")
    yield solver not in ("ddpm", "ddim"), reason, ("sampling.timesteps",)
    yield solver != "ddim", reason, ("sampling.eta",)
    yield solver in ("dopri5", "ddpm", "ddim"), reason, ("sampling.shift",)
    yield solver == "dopri5", reason, ("sampling.steps",)
    has_grid = sampling.time_grid is not None
    yield has_grid, "sampling.time_grid has the times", ("sampling.steps", "sampling.shift")
