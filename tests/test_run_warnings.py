"""What a run does not read is said before it trains."""

import pytest

from tubesynth import train

STAGE_1 = ("stage_1", "losses.perceptual=0.001")
DIFFUSION = ("stage_2_diffusion", "flow.vessel_weight=10")


@pytest.mark.parametrize(
    ("config", "override", "message"),
    [
        (*STAGE_1, "THE PERCEPTUAL TERM IS LEFT OUT"),
        (*DIFFUSION, "flow: its settings are not read, since latent_mode is diffusion"),
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
