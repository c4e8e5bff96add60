"""The program `tubesynth`, its commands, its packaged configs and its wheel."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import REPOSITORY

import tubesynth
from tubesynth import configs
from tubesynth.__main__ import COMMANDS, main
from tubesynth.config.loading import load_config
from tubesynth.config.packaged import description_of, find_config, packaged_configs, run_name
from tubesynth.runtime.errors import InputError


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_an_example_that_starts_with_the_command(name, capsys):
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: tubesynth {name} ")
    assert f"\nexample:\n  tubesynth {name}" in text


def test_the_program_lists_its_commands_and_its_version(capsys):
    main([])
    text = capsys.readouterr().out
    assert all(f"\n    {name}" in text for name in COMMANDS)
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"tubesynth {tubesynth.__version__}\n"


def test_an_unknown_command_is_refused_with_the_nearest_one():
    with pytest.raises(InputError, match="synthesise: no such command: did you mean synthesize"):
        main(["synthesise"])


def test_the_program_starts_without_torch():
    code = "import sys, tubesynth.__main__ as t; t.main([]); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_a_folder_of_the_name_of_the_package_does_not_hide_it(tmp_path):
    """As in the folder above a clone, where `-c` and the server of workers look first."""
    (tmp_path / "tubesynth" / "models").mkdir(parents=True)
    command = [sys.executable, "-c", "import tubesynth; tubesynth.Pipeline"]
    subprocess.run(command, cwd=tmp_path, check=True)


def test_readme_and_demo_give_one_duration():
    texts = [(REPOSITORY / name).read_text("utf-8") for name in ("README.md", "launch/demo.sh")]
    durations = [re.findall(r"takes (\d+ to \d+) minutes on 2 CPU cores", t, re.I) for t in texts]
    assert durations[0] == durations[1] and len(durations[0]) == 1


def test_packaged_configs_are_found_by_name_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = (REPOSITORY / "configs" / "stage_1_3d_f4.yml").read_bytes()
    for name in ("stage_1_3d_f4", "stage_1_3d_f4.yml", "config/stage_1_3d_f4.yml"):
        assert find_config(name).read_bytes() == expected
    assert load_config("demo/stage_2").stage == 2
    with pytest.raises(InputError, match="did you mean demo/stage_2"):
        load_config("demo/stage_22")


def test_runs_of_packaged_configs_have_the_name_of_their_config(tmp_path):
    names = (
        "stage_1_3d_f4",
        "demo/stage_1.yml",
        str(REPOSITORY / "configs" / "demo" / "stage_1.yml"),
    )
    assert [run_name(name) for name in names] == ["stage_1_3d_f4", "demo/stage_1", "demo/stage_1"]
    (tmp_path / "stage_1.yml").write_text("stage: 1")
    assert run_name(tmp_path / "stage_1.yml") == "stage_1"


def test_a_file_that_exists_wins_over_a_packaged_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stage_1_3d_f4.yml").write_text("stage: 1\nseed: 77\n")
    assert load_config("stage_1_3d_f4.yml").seed == 77


def test_every_config_is_listed_with_its_description_and_can_be_copied(tmp_path, capsys):
    configs.main([])
    *listed, _, batch_script = capsys.readouterr().out.splitlines()
    assert batch_script.startswith("launch/slurm.sbatch, no config")
    lines = dict(line.split("  ", 1) for line in listed)
    lines = {name.strip(): text.strip() for name, text in lines.items()}
    for name, path in packaged_configs().items():
        assert lines[name] == description_of(path) and 20 < len(lines[name]) < 120
        target = tmp_path / f"{name.replace('/', '_')}.yml"
        configs.main(["copy", name, str(target)])
        assert target.read_bytes() == path.read_bytes()
    with pytest.raises(InputError, match="exists already"):
        configs.main(["copy", name, str(target)])


def test_the_top_level_names_are_imported_at_their_first_use():
    code = """if True:
        import os, sys
        environment = dict(os.environ)
        import tubesynth
        assert not {"torch", "numpy"} & set(sys.modules) and os.environ == environment
        from tubesynth.pipeline import Pipeline
        from tubesynth.volume.grid import Volume
        assert tubesynth.Pipeline is Pipeline and tubesynth.Volume is Volume
        assert {"Pipeline", "Volume"} <= set(dir(tubesynth))
    """
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'Pipe'"):
        _ = tubesynth.Pipe


@pytest.mark.slow
def test_a_wheel_runs_every_command_from_another_folder(tmp_path):
    reason = "building a wheel without a network needs setuptools 70.1"
    pytest.importorskip("setuptools", minversion="70.1", reason=reason)
    pytest.importorskip("pip", reason="building a wheel needs pip")
    source, site, folder = (tmp_path / name for name in ("source", "site", "folder"))
    for name in ("tubesynth", "configs", "launch", "models"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, source / name, ignore=ignored)
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, source]
    subprocess.run([*pip, *build], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    install = ["install", "--no-deps", "--no-index", "--target", site, wheel]
    subprocess.run([*pip, *install], check=True)
    folder.mkdir()

    def run(*command):
        environment = {**os.environ, "PYTHONPATH": str(site)}
        options = dict(env=environment, cwd=folder, check=True, capture_output=True, text=True)
        return subprocess.run([str(item) for item in command], **options).stdout

    help_of_all = """if True:
        import contextlib, tubesynth
        from tubesynth.__main__ import COMMANDS, main
        for name in COMMANDS:
            with contextlib.suppress(SystemExit):
                main([name, "--help"])
        print(tubesynth.__file__)
    """
    lines = run(sys.executable, "-c", help_of_all).splitlines()
    assert sum(line.startswith("usage: tubesynth") for line in lines) == len(COMMANDS)
    assert lines[-1] == str(site / "tubesynth" / "__init__.py")
    program = site / "bin" / "tubesynth"
    listed = run(program, "configs")
    assert all(name in listed for name in [*packaged_configs(), "launch/slurm.sbatch"])
    plan = run(program, "train", "--dry-run", "--config", "demo/stage_1")
    assert "autoencoder parameters:     462,037" in plan
    assert (site / "tubesynth" / "py.typed").is_file()
    models = site / "tubesynth" / "packaged" / "models", REPOSITORY / "models"
    installed, source = ({path.name for path in folder.iterdir()} for folder in models)
    assert installed == source
