"""Misspelt, repeated, mistyped and contradictory settings are refused with key and remedy."""

import re
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import refusals

from tubesynth.config.labels import load_scheme
from tubesynth.config.loading import config_from_plain, load_config
from tubesynth.config.strict import dump, flatten, read_yaml, to_plain
from tubesynth.models.distance_bias import bias_channels
from tubesynth.runtime.errors import InputError
from tubesynth.volume.classes import NINE_CLASSES, LabelScheme

CONFIG_FOLDER = Path(__file__).parent.parent / "configs"
CONFIGS = sorted(CONFIG_FOLDER.rglob("*.yml"))

TOKENS = "data: {token_step_mm: 1}\n"
PUBLISHED = TOKENS + "stage: 2\nunet: {architecture: published"
VESSELS = "vessel_attention: plain"
DDIM = "stage: 2\nlatent_mode: diffusion\nsampling: {solver: ddim}\n"
DDIM_LEADING = DDIM.replace("ddim}", "ddim, timesteps: leading}")


def write(tmp_path, text):
    path = tmp_path / "c.yml"
    path.write_text(text)
    return path


def refusal(tmp_path, text, overrides=()):
    words = () if overrides else ("c.yml",)
    return refusals.refusal(lambda: load_config(write(tmp_path, text), overrides), *words)


def test_a_number_in_scientific_notation_is_a_number(tmp_path):
    config = load_config(write(tmp_path, "stage: 1\ntrain: {learning_rate: 1e-4}\n"))
    assert config.train.learning_rate == 1e-4
    config = load_config(write(tmp_path, "stage: 1\n"), ["train.learning_rate=3e-5"])
    assert config.train.learning_rate == 3e-5


def test_values_that_yaml_reads_as_another_type_have_the_type_of_their_key(tmp_path):
    config = load_config(write(tmp_path, "stage: 2\ntrain: {precision: 32}\n"))
    assert config.train.precision == "32"
    assert (
        load_config(write(tmp_path, "stage: 1\n"), ["train.precision=32"]).train.precision == "32"
    )
    config = load_config(write(tmp_path, "stage: 2\nunet: {vessel_attention: off}\n"))
    assert config.unet.vessel_attention == "off"


def test_a_config_is_changed_by_replace_alone(tmp_path):
    config = load_config(write(tmp_path, "stage: 2\n"))
    for section, key in ((config, "seed"), (config.data, "root"), (config.flow, "loss")):
        with pytest.raises(FrozenInstanceError):
            setattr(section, key, None)


@pytest.mark.parametrize("spelling", ["optimizers", "optimisers"])
def test_the_optimizers_restart_in_the_spelling_of_0_1_0_too(tmp_path, spelling):
    config = load_config(write(tmp_path, f"stage: 1\ntrain: {{restart: [{spelling}]}}\n"))
    assert config.train.restart == ["optimizers"]


def test_an_unknown_key_is_named_with_the_nearest_right_one(tmp_path):
    message = refusal(tmp_path, "stage: 1\ntrain: {learning_rat: 1.0}\n")
    assert "train.learning_rat" in message and "train.learning_rate" in message


def test_a_section_of_another_stage_is_unknown(tmp_path):
    assert "unet" in refusal(tmp_path, "stage: 1\nunet: {channels: [32]}\n")


def test_a_repeated_key_is_refused_with_its_line(tmp_path):
    message = refusal(tmp_path, "stage: 1\nseed: 1\nseed: 2\n")
    assert "line 3" in message and "seed" in message


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("stage: 7\n", "stage"),
        ("stage: [1]\n", "stage"),
        ("stage: 1\ndata: {resolution: [64, 64]}\n", "data.resolution"),
        ("stage: 1\ndata: {resolution: [66, 64, 64]}\n", "data.resolution"),
        ("stage: 1\ndata: {hu_window: [100, -100]}\n", "data.hu_window"),
        ("stage: 1\ndata: {hu_window: [0, 1]}\n", "a window of at least 100"),
        ("stage: 1\ndata: {hu_window: [0, 65535]}\n", "images are stored as int16"),
        ("stage: 1\ndata: {batch_size: 0}\n", "data.batch_size"),
        (
            "stage: 1\ndata: {batch_size: 2, augment: {rotate90: 0.1, convention: published}}\n",
            "data.augment.convention: published turns exchange the sides",
        ),
        ("stage: 1\ndata: {spacing: []}\n", "data.spacing: expected 3 positive numbers"),
        ("stage: 1\ndata: {spacing: [[1, 1, 1], 2]}\n", "a range is two lists of numbers"),
        ("stage: 1\ndata: {spacing: [[1, 1], [2, 2]]}\n", "data.spacing: expected 3 positive"),
        (
            "stage: 1\ndata: {spacing: [[1, 1, 3], [2, 2, 2]]}\n",
            "the smallest spacing of the range",
        ),
        ("stage: 1\ndata: {spacing_draws: 0, spacing: [[1, 1, 1], [2, 2, 2]]}\n", "spacing_draws"),
        ("stage: 1\nseed: -1\n", "seed: -1"),
        ("stage: 1\nseed: 99999999999999999999\n", "seed: 99999999999999999999"),
        ("stage: 1\ndata: {num_workers: -1}\n", "data.num_workers"),
        ("stage: 1\ndata: {crop: [128, 128, 256]}\n", "is larger than data.resolution"),
        ("stage: 1\nautoencoder: {channels: []}\n", "autoencoder.channels"),
        ("stage: 1\nautoencoder: {channels: [0, 4]}\n", "autoencoder.channels"),
        ("stage: 1\nautoencoder: {embedding_dim: 0}\n", "autoencoder.embedding_dim"),
        ("stage: 1\nautoencoder: {commitment: -1.0}\n", "autoencoder.commitment"),
        ("stage: 1\ndiscriminator: {channels: 0}\n", "discriminator.channels"),
        ("stage: 2\nunet: {channels: []}\n", "unet.channels"),
        ("stage: 2\nunet: {channels: [15, 32, 64, 64]}\n", "make it even"),
        ("stage: 2\nunet: {num_res_blocks: 0}\n", "unet.num_res_blocks"),
        ("stage: 2\nunet: {spade_hidden: 0}\n", "unet.spade_hidden"),
        ("stage: 2\nunet: {dropout: 2.0}\n", "unet.dropout"),
        ("stage: segmenter\nsegmenter: {channels: [0, 4]}\n", "segmenter.channels"),
        (
            "stage: 1\ndim: 2\ndata: {resolution: [64, 64], spacing: [1, 1], token_step_mm: 1}\n",
            "data.token_step_mm: vessels are traced in volumes",
        ),
        ("stage: 1\ndata: {batch_size: 1.5}\n", "data.batch_size"),
        ("stage: 1\ndata: {vessel_class: 9}\n", "data.vessel_class"),
        ("stage: 1\ntrain: {precision: bf16}\n", "train.precision"),
        ("stage: 1\ntrain: {checkpointing: 1}\n", "train.checkpointing"),
        ("stage: 1\ntrain: {restart: [everything]}\n", "train.restart"),
        ("stage: 1\nautoencoder: {quantizer: vq}\n", "autoencoder.quantizer"),
        ("stage: 1\nautoencoder: {quantizer: fsq}\n", "set embedding_dim to 5"),
        (
            "stage: 1\nautoencoder: {quantizer: fsq, embedding_dim: 2, fsq_levels: [8, 2]}\n",
            "autoencoder.fsq_levels",
        ),
        ("stage: 1\nautoencoder: {quantizer: kl, kl_weight: -1.0}\n", "autoencoder.kl_weight"),
        ("stage: 1\nautoencoder: {codebook_decay: 1.0}\n", "autoencoder.codebook_decay"),
        ("stage: 1\nautoencoder: {codebook_size: 1}\n", "autoencoder.codebook_size"),
        ("stage: 1\ntrain: {best_score: dice}\n", "train.best_score"),
        ("stage: 1\ntrain: {learning_rate: -1.0}\n", "train.learning_rate"),
        ("stage: 1\ntrain: {warmup_steps: -3}\n", "train.warmup_steps"),
        ("stage: 1\ntrain: {keep: -1}\n", "train.keep"),
        ("stage: 1\ntrain: {patience: 0}\n", "train.patience"),
        ("stage: 2\ntrain: {swa: {from_epoch: 3}}\n", "train.swa.learning_rate"),
        ("stage: 1\ntrain: {swa: {from_epoch: 3, learning_rate: 1}}\n", "train.swa: averages"),
        ("stage: 2\ntrain: {swa: {from_epoch: 101, learning_rate: 1}}\n", "train.swa.from_epoch"),
        ("stage: 1\ntrain: {gradient_clip: -1.0}\n", "train.gradient_clip"),
        ("stage: 1\ntrain: {ema_half_life: 100}\n", "keeps no averaged weights"),
        ("stage: 2\ntrain: {frozen_encoder: true}\n", "stage 1 alone has an encoder"),
        ("stage: 2\nflow: {offset_noise: -1}\n", "flow.offset_noise: -1.0: must be at least 0"),
        ("stage: 1\nautoencoder: {contrast_pool: true}\n", "has no vessels to give a contrast"),
        (
            "stage: segmenter\ndim: 2\ndata: {resolution: [64, 64], spacing: [1, 1]}\n",
            "segmenter is for volumes",
        ),
        ("stage: 2\nunet: {channels: [64, 128, 200], attention_levels: [1]}\n", "level 2"),
        (
            "stage: 2\ndata: {token_step_mm: 1.0}\n"
            "unet: {vessel_attention: distance, attention_levels: []}\n",
            "unet.vessel_levels: empty",
        ),
        ("stage: 2\ntrain: {ema_half_life: [100, 0]}\n", "train.ema_half_life"),
        ("stage: 2\ntrain: {ema_half_life: [100, 100]}\n", "train.ema_half_life"),
        ("stage: 2\ntrain: {ema_half_life: often}\n", "train.ema_half_life"),
        ("stage: 2\ntrain: {ema_half_life: [often]}\n", "train.ema_half_life[0]"),
        ("stage: 2\ntrain: {panel_cases: 0}\n", "train.panel_cases"),
        ("stage: 2\ndata: {crop: [64, 64, 64]}\n", "data.crop"),
        ("stage: 2\nunet: {head_channels: 48}\n", "unet.head_channels"),
        ("stage: 2\nunet: {head_channels: 0}\n", "unet.head_channels"),
        ("stage: 2\nunet: {head_channels: [0, 0, 32]}\n", "each of the 4 levels"),
        (
            "stage: 2\nunet: {head_channels: [0, 0, 0, 32]}\n",
            "unet.head_channels: must be at least 1 at level 2",
        ),
        ("stage: 2\nunet: {attention_dropout: 0.1}\n", "unet.attention_dropout: 0.1: only"),
        (f"{PUBLISHED}, channels: [48, 64], attention_levels: [1]}}\n", "unet.channels: [48, 64]"),
        (
            f"{PUBLISHED}, {VESSELS}, vessel_levels: [2]}}\n",
            "unet.vessel_levels: [2]",
        ),
        (f"{PUBLISHED}, {VESSELS}}}\n", "multiple of 6, and 1 for the radius"),
        ("stage: 2\nunet: {label_encoder: none}\nflow: {label_dropout: 0.1}", "flow.label_dropout"),
        ("stage: 2\nunet: {label_encoder: none, vessel_fields: true}\n" + TOKENS, "vessel_fields"),
        ("stage: 2\nlatents: {mean: 0.1}\n", "latents.mean, scaling_factor"),
        ("stage: 1\ntrain: {schedule: minimum}\n", "train.learning_rate_min: 0"),
        ("stage: 1\ntrain: {learning_rate_min: 1}\n", "train.learning_rate_min: 1"),
        ("stage: 1\nlosses: {perceptual_slices: 1.5}\n", "losses.perceptual_slices"),
        ("stage: 2\nflow: {coupling: optimal_transport}\n", "data.batch_size"),
        ("stage: 2\nflow: {vessel_weight: 0}\n", "flow.vessel_weight"),
        ("stage: 2\nflow: {label_dropout: 2}\n", "flow.label_dropout"),
        ("stage: 2\nflow: {time_std: 0}\n", "flow.time_std"),
        ("stage: 2\nflow: {sigma_min: 1}\n", "flow.sigma_min"),
        ("stage: 2\nsampling: {solver: ddim}\n", "sampling.solver"),
        ("stage: 2\nsampling: {solver: rk5}\n", "sampling.solver"),
        ("stage: 2\nsampling: {steps: 0}\n", "sampling.steps"),
        ("stage: 2\nsampling: {shift: 0}\n", "sampling.shift"),
        ("stage: 2\nsampling: {shift: 1.0e+30}\n", "sampling.shift"),
        ("stage: 2\nsampling: {solver: heun, time_grid: [0, 0.6, 0.4, 1]}\n", "rising times"),
        ("stage: 2\nsampling: {solver: dopri5, time_grid: [0, 1]}\n", "sampling.time_grid: dopri5"),
        ("stage: 2\nlatent_mode: diffusion\n", "sampling.solver: adams"),
        (DDIM + "diffusion: {zero_terminal_snr: true}\n", "diffusion.prediction=v"),
        (DDIM + "diffusion: {beta_end: 1e-4}\n", "diffusion.beta_start"),
        (DDIM + "diffusion: {num_timesteps: 4}\n", "diffusion.num_timesteps, 4"),
        (DDIM + "diffusion: {vessel_weight: -1}\n", "diffusion.vessel_weight"),
        (DDIM_LEADING + "diffusion: {zero_terminal_snr: true, prediction: v}\n", "trailing"),
        ("- a list\n", "top level"),
        ("stage: [\n", "not valid YAML"),
    ],
)
def test_wrong_values_are_named_by_key(tmp_path, text, key):
    assert key in refusal(tmp_path, text)


def test_a_head_must_have_channels_beside_those_of_the_distance_bias(tmp_path):
    text = "stage: 2\nunet: {attention_levels: [0], vessel_attention: distance}\n"
    path = write(tmp_path, text)

    def load(head):
        heads = [f"unet.head_channels={head}", f"unet.channels=[{4 * head}]"]
        return load_config(path, [*heads, "data.token_step_mm=1.0"])

    taken = bias_channels(3)
    assert load(taken + 1).unet.head_channels == taken + 1
    with pytest.raises(InputError, match=f"unet.head_channels: {taken} .* the {taken} channels"):
        load(taken)


def test_a_malformed_override_is_refused(tmp_path):
    assert "key=value" in refusal(tmp_path, "stage: 1\n", ["train.epochs"])
    assert "seed" in refusal(tmp_path, "stage: 1\nseed: 1\n", ["seed.x=1"])


FOUR = {
    "names": ["background", "heart", "vessels", "aorta"],
    "vessel": 2,
    "heart": [1],
    "aorta": 3,
    "plausible_ml": {"heart": [200, 1500]},
    "sources": {"heart": ["heart_myocardium", "heart_atrium_left"]},
}


def labels_of(tmp_path, text: str, *overrides: str):
    return load_config(write(tmp_path, "stage: 1\n" + text), list(overrides)).labels


def test_the_nine_classes_are_the_default_scheme(tmp_path):
    assert labels_of(tmp_path, "") == NINE_CLASSES
    older = "data: {num_classes: 9, vessel_class: null}\n"
    assert labels_of(tmp_path, older) == NINE_CLASSES


def test_the_section_labels_replaces_the_scheme_and_survives_a_dump(tmp_path):
    config = load_config(write(tmp_path, f"stage: 1\nlabels: {FOUR}\n"))
    assert config.labels == LabelScheme(
        ("background", "heart", "vessels", "aorta"),
        vessel=2,
        heart=(1,),
        aorta=3,
        plausible_ml={"heart": (200.0, 1500.0)},
        sources={"heart": ("heart_myocardium", "heart_atrium_left")},
    )
    assert load_config(write(tmp_path, dump(config))) == config


def test_the_older_keys_of_data_name_the_number_of_classes_and_the_vessel_class(tmp_path):
    assert labels_of(tmp_path, "", "data.vessel_class=3").vessel == 3
    four = labels_of(tmp_path, "data: {num_classes: 4}\n")
    assert (four.num_classes, four.vessel) == (4, 3)
    assert four.names == ("background", "class 1", "class 2", "class 3")
    both = labels_of(tmp_path, f"labels: {FOUR}\ndata: {{num_classes: 4, vessel_class: 2}}\n")
    assert both.names == tuple(FOUR["names"])


@pytest.mark.parametrize(
    ("labels", "data", "text"),
    [
        (FOUR, "{vessel_class: 3}", "data.vessel_class: 3, but the section labels has 2"),
        (FOUR, "{num_classes: 9}", "data.num_classes: 9, but the section labels has 4"),
        (FOUR | {"vessel": 4}, "{}", "labels.vessel: 4: expected a foreground class, 1 to 3"),
        (FOUR | {"heart": [1, 2]}, "{}", "labels.heart: [1, 2]"),
        (FOUR | {"aorta": 2}, "{}", "labels.aorta: 2"),
        (FOUR | {"names": ["a", "a", "b", "c"]}, "{}", "labels.names: expected"),
        (FOUR | {"sources": {"lung": ["lung"]}}, "{}", "labels.sources: 'lung' is not in"),
        (FOUR | {"plausible_ml": {"heart": [5, 2]}}, "{}", "labels.plausible_ml.heart"),
        ({"vessel": 2}, "{}", "labels.names' is missing"),
    ],
)
def test_label_schemes_that_contradict_themselves_or_older_keys_are_refused(
    labels, data, text, tmp_path
):
    assert text in refusal(tmp_path, f"stage: 1\nlabels: {labels}\ndata: {data}\n")


def test_a_scheme_is_read_from_any_config_or_from_a_file_with_its_section_alone(tmp_path):
    assert load_scheme(None) == NINE_CLASSES
    assert load_scheme(write(tmp_path, "stage: 2\n")) == NINE_CLASSES
    assert load_scheme(write(tmp_path, f"labels: {FOUR}\n")).vessel == 2
    assert load_scheme(write(tmp_path, "data: {num_classes: 5}\n")).vessel == 4
    with pytest.raises(InputError, match="no section labels"):
        load_scheme(write(tmp_path, "vessel: 2\n"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_every_config_loads_and_its_dump_reads_back_equal(path, tmp_path):
    config = load_config(path)
    again = write(tmp_path, dump(config))
    assert config_from_plain(read_yaml(again), "dump") == config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_every_config_opens_with_its_command_hardware_time_and_result(path):
    head = path.read_text(encoding="utf-8").split("\nstage:")[0]
    assert re.match(r"# [A-Z][^\n]{40,}[.]\n", head)
    name = path.relative_to(CONFIG_FOLDER).with_suffix("").as_posix()
    command = re.search(r"#   Command: +(tubesynth .*)", head)
    assert command and f"--config {name}" in command[1]
    for entry in ("Hardware", "Time", "Result"):
        assert f"\n#   {entry}: " in head


@pytest.mark.parametrize(
    "path", sorted(CONFIG_FOLDER.glob("as_published/*.yml")), ids=lambda p: p.stem
)
def test_a_config_names_every_key_in_which_it_differs_from_the_published_one(path):
    other = CONFIG_FOLDER / path.name
    _, head = other.read_text(encoding="utf-8").split(
        f"# Differs from as_published/{path.stem} in:"
    )
    named = re.findall(r"[a-z_]+", head.split("\nstage:")[0])
    values, published = (flatten(to_plain(load_config(p))) for p in (other, path))
    differing = {key for key in values if values[key] != published[key]}
    paths = {"latents.autoencoder", "control.base"}
    assert {key for key in differing - paths if key.split(".")[-1] not in named} == set()


@pytest.mark.parametrize(
    ("original", "expected"),
    [
        ("model: {vae_config: {}}\ndata: {random_crop: [128, 128, 128]}\n", "stage_1_3d_f4"),
        ("model: {vae_config: {}}\ndata: {random_crop: null}\n", "stage_1_3d_f4_full"),
        (
            "model: {model_config: {num_res_blocks: 2}}\ndata:\ncallbacks: {gpustats: }\n",
            "stage_2_3d_f4_ddpm_base or as_published/stage_2_3d_f4_lfm_base",
        ),
        ("model: {model_config: {with_conditioning: True}}\n", "stage_2_3d_f4_lfm_crossattn"),
        ("model: {}\nprocessing: {generation: {}}\n", "stage_3_3d_f4_controlnet"),
        ("model: {spatial_dims: 2, vae_config: {}}\ndata: {}\n", "stage_1_2d_f4"),
    ],
)
def test_a_config_of_the_published_code_is_named_by_its_equivalent(original, expected, tmp_path):
    assert f"--config as_published/{expected}, and" in refusal(tmp_path, original)


def test_the_folder_config_of_the_published_readme_is_said_to_be_a_packaged_config(caplog):
    with caplog.at_level("WARNING", logger="tubesynth"):
        assert load_config("config/stage_2_3d_f4_lfm_base.yml").stage == 2
        assert load_config("configs/stage_2_3d_f4_lfm_base.yml").stage == 2
    (line,) = caplog.messages
    assert "no such file: using the packaged config stage_2_3d_f4_lfm_base" in line


def test_the_controlnet_of_the_demo_fits_the_model_that_the_demo_trains():
    base, control = (load_config(f"demo/{name}") for name in ("stage_2", "stage_3_controlnet"))
    assert control.flow == base.flow and control.unet == base.unet
    for key in ("resolution", "spacing", "token_step_mm"):
        assert getattr(control.data, key) == getattr(base.data, key)
