"""tubesynth plan: the costs of configs, and settings that fit a GPU."""

import re

import pytest

from tubesynth.config.loading import load_config
from tubesynth.config.schema import AutoencoderConfig
from tubesynth.doctor.training_memory import estimate
from tubesynth.plan import GPUS, main
from tubesynth.runtime.errors import InputError

NARROW = ["unet.channels=[32, 32]", "data.resolution=[64, 64, 48]"]


def test_a_row_has_the_steps_memory_and_hours_of_its_config(capsys):
    main(["demo/stage_1", "train.epochs=7", "--cases", "101", "--precision", "32"])
    head, row, _, note = capsys.readouterr().out.splitlines()
    config = load_config("demo/stage_1", ["train.epochs=7"])
    needed = estimate(config)
    steps = -(-7 * 101 // (config.data.batch_size * config.train.accumulate))
    cells = re.split(r" {2,}", row)
    assert cells[0] == "demo/stage_1" and cells[4] == f"{steps:,}"
    assert float(cells[1].removesuffix(" M")) == round(needed.parameters / 1e6, 1)
    assert float(cells[3]) == pytest.approx(needed.flops / 1e12, rel=5e-3)
    slowest = float(cells[5].split(" to ")[1].removesuffix(" h"))
    hours = steps * needed.flops / (0.07 * GPUS["H100"]) / 3600
    assert slowest == pytest.approx(hours, rel=0.06)
    assert re.split(r" {2,}", head)[5:] == [*GPUS, "cache"] and "101 training cases" in note


@pytest.mark.filterwarnings("error")
def test_the_settings_that_fit_are_the_first_that_do(capsys):
    name, sizes = "demo/stage_2", AutoencoderConfig()
    whole = load_config(name, [*NARROW, "data.batch_size=4", "train.precision=bf16-mixed"])
    needed = estimate(whole, sizes).training
    main([name, *NARROW, "data.batch_size=4", "latents.autoencoder=null", "--fit", "100"])
    assert capsys.readouterr().out.endswith("with --precision bf16-mixed\n")
    main(
        [name, *NARROW, "data.batch_size=4", "latents.autoencoder=null", "--fit", f"{needed / 1e9}"]
    )
    text = capsys.readouterr().out
    assert "data.batch_size=1 train.accumulate=" in text and "checkpointing" not in text
    main([name, *NARROW, "latents.autoencoder=null", "--fit", "0.1"])
    assert "no setting fits into 0.1 GB; the least is" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["demo/stage_1", "--cases", "0"], "--cases 0: must be at least 1"),
        (["demo/stage_1", "--fit", "-1"], "--fit -1.0: must be a positive number"),
        (["train.epochs=2"], "name a config"),
        (["demo/stage_0"], "did you mean demo/stage_"),
    ],
)
def test_wrong_input_is_refused(arguments, message):
    with pytest.raises(InputError, match=re.escape(message)):
        main(arguments)
