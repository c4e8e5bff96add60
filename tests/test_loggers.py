"""TensorBoard and W&B get the same values; a resumed run continues its W&B run; the git commit."""

import json
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import lines

from tubesynth.runtime.environment import git_commit
from tubesynth.runtime.errors import InputError
from tubesynth.runtime.run_log import RunLog
from tubesynth.train import main

PICTURE = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)


def a_short_run(folder: Path, logger: str, resume_step: int = 0) -> None:
    log = RunLog(folder, "stage: 1\ntrain: {epochs: 2}\n", logger, resume_step)
    log.scalars(resume_step + 1, 1, "training", {"l1": 0.5, "seconds_per_step": 2.0})
    log.scalars(resume_step + 1, 1, "validation", {"loss": 0.25})
    log.panel(resume_step + 1, "validation_7", PICTURE)
    log.close()


class FakeWandb(types.ModuleType):
    """Records the calls of the logger to W&B."""

    class Error(Exception):
        pass

    def __init__(self, refuses: str | None = None):
        super().__init__("wandb")
        self.refuses, self.runs, self.logged = refuses, [], []
        self.errors = types.SimpleNamespace(Error=self.Error)
        self.__spec__ = types.SimpleNamespace(origin="wandb/__init__.py")

    def init(self, **options):
        if self.refuses:
            raise self.Error(self.refuses)
        self.runs.append(options)
        return self

    def define_metric(self, name, step_metric=None):
        pass

    def log(self, values):
        self.logged.append(values)

    def finish(self):
        pass

    @staticmethod
    def Image(picture):
        return picture


@pytest.fixture
def fake_wandb(monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_wandb_gets_the_same_values_as_tensorboard(fake_wandb, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    a_short_run(tmp_path / "board", "tensorboard")
    events = EventAccumulator(str(tmp_path / "board")).Reload()
    board_values = {
        (tag, event.step, event.value)
        for tag in events.Tags()["scalars"]
        for event in events.Scalars(tag)
    }
    a_short_run(tmp_path / "wandb", "wandb")
    rows = [dict(row) for row in fake_wandb.logged]
    assert np.array_equal(rows[-1].pop("validation_7"), PICTURE)
    assert events.Tags()["images"] == ["validation_7"]
    wandb_values = {
        (tag, row["step"], v) for row in rows for tag, v in row.items() if tag != "step"
    }
    assert wandb_values == board_values and len(board_values) == 3
    assert fake_wandb.runs[0]["config"] == {"stage": 1, "train": {"epochs": 2}}


def test_a_resumed_run_continues_its_wandb_run(fake_wandb, tmp_path):
    for folder, step in (("run", 0), ("run", 4), ("other", 0)):
        a_short_run(tmp_path / folder, "wandb", step)
    first, second, other = (options["id"] for options in fake_wandb.runs)
    assert first == second != other
    assert all(options["resume"] == "allow" for options in fake_wandb.runs)


def test_an_error_of_wandb_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb("No API key configured."))
    with pytest.raises(InputError, match="--logger wandb: No API key .*WANDB_MODE=offline"):
        a_short_run(tmp_path, "wandb")


def test_a_missing_wandb_is_refused_before_the_run_starts(workplace, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="--logger wandb: .*not installed: pip install"):
        main(
            ["--config", str(workplace / "s1.yml"), "--run-dir", str(tmp_path / "run")]
            + ["--logger", "wandb"]
        )
    assert not (tmp_path / "run").exists()


def test_wandb_offline_keeps_scalars_pictures_and_one_id(tmp_path, monkeypatch):
    """The installed package runs without a network and without an account."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    a_short_run(tmp_path, "wandb")
    a_short_run(tmp_path, "wandb", resume_step=1)
    run_id = (tmp_path / "wandb_run_id").read_text(encoding="utf-8")
    logs = list(tmp_path.glob(f"wandb/offline-run-*-{run_id}/run-{run_id}.wandb"))
    assert logs
    content = b"".join(path.read_bytes() for path in logs)
    assert b"training/l1" in content and b"validation/loss" in content
    pictures = list(tmp_path.glob("wandb/*/files/media/images/validation_7_*.png"))
    assert pictures and all(np.array_equal(np.array(Image.open(p)), PICTURE) for p in pictures)
    steps = [line["step"] for line in lines(tmp_path)]
    assert steps == [1, 1, 2, 2]


def test_the_commit_is_that_of_tubesynth_and_not_of_a_repository_around_it(tmp_path):
    if shutil.which("git") is None:
        pytest.skip("no git")
    installed = tmp_path / ".venv" / "tubesynth" / "runtime"
    installed.mkdir(parents=True)
    (installed / "environment.py").write_text("installed")
    (tmp_path / "tracked.py").write_text("tracked")

    def git(*arguments):
        name = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", *name, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init", "-q")
    git("add", "tracked.py")
    git("commit", "-qm", "first")
    assert git_commit(installed) is None
    git("add", "-f", ".venv")
    git("commit", "-qm", "both")
    assert re.fullmatch("[0-9a-f]{12}", git_commit(installed))
    (installed / "environment.py").write_text("changed")
    assert git_commit(installed).endswith("+")


def test_a_gradient_that_overflowed_is_null_in_the_log_and_every_line_is_json(tmp_path):
    log = RunLog(tmp_path, "stage: 1\n", "none", 0)
    log.scalars(1, 0, "training", {"loss": 0.5, "gradient_norm": float("inf")})
    (line,) = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    assert json.loads(line, parse_constant=refuse)["gradient_norm"] is None
