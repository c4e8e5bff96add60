"""docs/fidelity.md: the published commands are understood, and run at a small size."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from conftest import REPOSITORY

from tubesynth.__main__ import load_command
from tubesynth.config.loading import load_config
from tubesynth.config.packaged import packaged_configs
from tubesynth.train import main as train

PAGE = (REPOSITORY / "docs" / "fidelity.md").read_text(encoding="utf-8")
COMMANDS = [shlex.split(line) for line in re.findall(r"^    tubesynth (.+)$", PAGE, re.MULTILINE)]
TRAININGS = [arguments for name, *arguments in COMMANDS if name == "train"]


def config_name(arguments: list[str]) -> str:
    return arguments[arguments.index("--config") + 1]


def resumed_run(arguments: list[str]) -> str:
    """The config of the run whose checkpoint the command resumes: runs/CONFIG/checkpoints/..."""
    path = Path(arguments[arguments.index("--resume") + 1])
    return str(path.parents[1].relative_to("runs"))


@pytest.mark.parametrize("arguments", TRAININGS)
def test_each_published_training_is_planned_as_it_stands(arguments, capsys):
    if "--resume" in arguments:  # a checkpoint of another training on the page
        resume = arguments.index("--resume")
        assert resumed_run(arguments) in map(config_name, TRAININGS)
        arguments = arguments[:resume] + arguments[resume + 2 :]
    train([*arguments, "--dry-run"])
    assert "16-mixed" in capsys.readouterr().out


def test_every_config_as_published_is_on_the_page():
    names = [name for name in packaged_configs() if name.startswith("as_published/")]
    assert len(names) >= 6 and all(name.rpartition("/")[2] in PAGE for name in names)


def shrunk(arguments: list[str], data: Path) -> list[str]:
    """The command with other sizes and one epoch in each phase, and the same settings else."""
    config = load_config(config_name(arguments))
    settings = [f"data.root={data}", "data.resolution=[64, 64, 48]", "data.spacing=[2.8, 2.8, 2.8]"]
    settings += ["data.num_workers=0"]
    if config.stage == 1:
        settings += ["autoencoder.channels=[4, 4]", "autoencoder.residual_channels=[4, 4]"]
        settings += ["autoencoder.codebook_size=16", "discriminator.channels=4"]
        settings += ["data.crop=[16, 16, 16]"] if config.data.crop else []
    else:
        with_vessels = config.unet.vessel_attention != "off"  # positions: multiples of 6
        levels = range(len(config.unet.channels))
        attended = [level in config.unet.attention_levels for level in levels]
        channels = [96 if with_vessels and each else 32 for each in attended]
        heads = [width * each for width, each in zip(channels, attended, strict=True)]
        settings += [f"unet.channels={channels}", f"unet.head_channels={heads}"]
        settings += ["unet.label_channels=[8, 8, 8]", "unet.spade_hidden=8"]
        settings += ["sampling.steps=1"]
        settings += ["sampling.solver=euler"] if config.latent_mode == "flow" else []
    arguments = [*arguments, *settings]
    epochs = 2 if "full" in config_name(arguments) else 1  # they count from the first phase
    for option, value in (("--epochs", str(epochs)), ("--precision", "32")):  # 16 bits need a GPU
        arguments[arguments.index(option) + 1] = value
    return arguments


@pytest.fixture
def data(phantoms, tmp_path) -> Path:
    """One case for training, and one for validation."""
    for split in ("training", "validation"):
        for kind in ("images", "labels"):
            (tmp_path / "data" / split / kind).mkdir(parents=True)
            file = sorted((phantoms / split / kind).iterdir())[0]
            shutil.copy(file, tmp_path / "data" / split / kind)
    return tmp_path / "data"


@pytest.mark.slow
def test_the_published_commands_run_from_end_to_end(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments in TRAININGS:
        train(shrunk(arguments, data))
    folders = {"CTS": data / "validation" / "images", "LABELS": data / "validation" / "labels"}
    words = {**folders, "256": "64", "128": "48", "0.7": "2.8", "1.05": "2.8"}
    for command, *arguments in COMMANDS:
        if command != "train":
            load_command(command).main([str(words.get(word, word)) for word in arguments])
    runs = {path.parent.name: path for path in tmp_path.glob("runs/as_published/*/metrics.jsonl")}
    assert len(runs) == len(TRAININGS)
    for name, path in runs.items():
        last = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
        assert last["step"] == (2 if "full" in name else 1) and last["loss"] > 0
    metrics = json.loads((tmp_path / "SCORES" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["reconstruction"]["ssim_as_published"]["n"] == 1
