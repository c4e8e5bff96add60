"""What a run does not read is said before it trains."""

import pytest

from tubesynth import train
from tubesynth.config.loading import load_config
from tubesynth.config.packaged import packaged_folder
from tubesynth.config.unread import unread_settings

STAGE_1 = ("stage_1", "losses.perceptual=0.001")
DIFFUSION = ("stage_2_diffusion", "flow.vessel_weight=10")


@pytest.mark.parametrize(
    ("config", "override", "message"),
    [
        (*STAGE_1, "THE PERCEPTUAL TERM IS LEFT OUT"),
        (*DIFFUSION, "flow.vessel_weight: not read, since latent_mode is diffusion"),
    ],
)
def test_settings_that_a_run_does_not_read_are_named(
    config, override, message, workplace, tmp_path, capsys
):
    command = ["--config", f"demo/{config}", "--run-dir", str(tmp_path)]
    command.append(f"data.root={workplace / 'data'}")

    def named(*more: str) -> bool:
        train.main([*command, "--dry-run", *more])
        lines = capsys.readouterr().out.splitlines()
        return any(line.startswith("warning:") and message in line for line in lines)

    assert named(override) and not named()


def test_steps_of_more_samples_than_there_are_cases_are_named(workplace, tmp_path, capsys):
    command = ["--config", "demo/stage_1", "--run-dir", str(tmp_path), "--dry-run"]
    command += [f"data.root={workplace / 'data'}", "train.accumulate=2"]

    def warned(batch_size: int) -> bool:
        train.main([*command, f"data.batch_size={batch_size}"])
        return "training cases: lower it" in capsys.readouterr().out

    cases = len(list((workplace / "data/training/images").iterdir()))
    assert warned(cases) and not warned(cases // 2)


CONFIGS = packaged_folder("configs")


def test_a_packaged_config_has_no_setting_that_is_not_read():
    for path in sorted(CONFIGS.rglob("*.yml")):
        assert list(unread_settings(load_config(path))) == [], path


KL = "autoencoder.quantizer=kl"
NO_VESSELS = ("unet.vessel_attention=off", "unet.vessel_fields=false")


@pytest.mark.parametrize(
    ("name", "overrides", "keys"),
    [
        ("stage_1_3d_f4", (KL, "autoencoder.codebook_size=99"), ["autoencoder.codebook_size"]),
        ("stage_1_3d_f4", ("autoencoder.kl_weight=1",), ["autoencoder.kl_weight"]),
        (
            "heart_stage_1",
            ("discriminator.channels=9", "losses.adversarial_from_step=5"),
            ["discriminator.channels", "losses.adversarial_from_step"],
        ),
        ("stage_1_3d_f4", ("data.token_step_mm=1",), ["data.token_step_mm"]),
        ("stage_1_3d_f4", ("losses.perceptual_slices=4",), ["losses.perceptual_slices"]),
        ("stage_1_3d_f4", ("data.spacing_draws=7",), ["data.spacing_draws"]),
        (
            "stage_1_3d_f4",
            ("train.schedule=constant", "train.learning_rate_min=1e-6"),
            ["train.learning_rate_min"],
        ),
        ("stage_2_3d_f4_lfm_base", ("data.augment.flip=0.5",), ["data.augment.flip"]),
        ("stage_2_3d_f4_lfm_base", ("data.augment.flip=0.5", "latents.variants=2"), []),
        ("stage_2_3d_f4_lfm_base", ("unet.vessel_levels=[1]",), ["unet.vessel_levels"]),
        ("stage_2_3d_f4_lfm_base", ("flow.time_mean=1",), ["flow.time_mean"]),
        ("heart_stage_2", ("sampling.rtol=0.5",), ["sampling.rtol"]),
        ("heart_stage_2", ("sampling.solver=dopri5", "sampling.rtol=0.5"), []),
        ("heart_stage_2", ("flow.vessel_dropout=0.2", *NO_VESSELS), ["flow.vessel_dropout"]),
        (
            "stage_3_3d_f4_controlnet",
            ("latents.mean=0", "latents.scaling_factor=2"),
            ["latents.mean", "latents.scaling_factor"],
        ),
        ("segment_vessels", ("train.checkpointing=true",), ["train.checkpointing"]),
    ],
)
def test_keys_without_effect_are_listed(name, overrides, keys):
    config = load_config(name, list(overrides))
    assert [key for _, names in unread_settings(config) for key in names] == keys
