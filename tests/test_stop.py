"""A signal in a long loop: what is finished is kept, and the same command resumes."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import lines, run

from tubesynth import cache, evaluate, synthesize, train
from tubesynth.inference import case_scores, sample_jobs
from tubesynth.inference.synthesis import Synthesizer
from tubesynth.runtime import stop_signal
from tubesynth.runtime.errors import EXIT_STOPPED, STOP_FILE, Stopped
from tubesynth.runtime.stop_signal import interruptible
from tubesynth.training.autoencoder import AutoencoderStage
from tubesynth.training.latents import LatentEncoder


def signal_at_call(monkeypatch, owner, name: str, number: int) -> list[int]:
    """The number-th call of owner.name receives SIGTERM; returns a list that grows by each call."""
    original, calls = getattr(owner, name), []

    def with_signal(*args, **options):
        calls.append(1)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **options)

    monkeypatch.setattr(owner, name, with_signal)
    return calls


def deterministic_lines(folder) -> list[dict]:
    seconds_and_memory = ("seconds_per_step", "waiting", "peak_memory_mb")
    return [{k: v for k, v in x.items() if k not in seconds_and_memory} for x in lines(folder)]


@pytest.mark.parametrize(
    ("method", "call", "where", "due"),
    [
        ("vessel_rows", 1, "in a validation", ""),  # the first validation, before the first step
        ("vessel_rows", 3, "in a validation", "validation epoch_00001"),
        ("_panel", 1, "in the panels", "panels epoch_00002"),
    ],
)
def test_a_training_stopped_in_validation_or_panels_resumes_to_the_uninterrupted_run(
    method, call, where, due, stage_1, workplace, tmp_path, monkeypatch
):
    command = ["--config", workplace / "s1.yml", "--run-dir", tmp_path]
    signal_at_call(monkeypatch, AutoencoderStage, method, call)
    with pytest.raises(Stopped, match=f"SIGTERM: {where}: saved at step .*same command resumes"):
        run(train, *command)
    monkeypatch.undo()
    last = tmp_path / "checkpoints" / "last.ckpt"
    position = torch.load(last, weights_only=True)["position"]
    assert position["due"] == due
    if method == "vessel_rows":  # a second life is killed between this line and its checkpoint
        with open(tmp_path / "metrics.jsonl", "a") as file:
            file.write(f'{{"step": {position["step"]}, "split": "validation", "loss": 1.0}}\n')
    run(train, *command)
    done = stage_1.parent.parent
    assert deterministic_lines(tmp_path) == deterministic_lines(done)
    for folder in ("checkpoints", "panels"):
        names = sorted(path.name for path in (done / folder).iterdir())
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == names
    for name in ("last", "best", "epoch_00002"):
        state, expected = (
            torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)
            for folder in (tmp_path, done)
        )
        assert state["position"] == expected["position"] and state["best"] == expected["best"]
        weights = expected["phases"]["autoencoder"]["module"]
        for key, weight in state["phases"]["autoencoder"]["module"].items():
            assert torch.equal(weight, weights[key]), key


def test_an_interrupted_encoding_keeps_its_latents(
    stage_1, workplace, tmp_path, monkeypatch, capsys
):
    command = ["--config", workplace / "s2.yml", f"data.cache_dir={tmp_path / 'cache'}"]
    signal_at_call(monkeypatch, LatentEncoder, "_encode_case", 3)
    with pytest.raises(Stopped, match="SIGTERM: the encoded cases stay in .*resumes"):
        run(train, *command, "--run-dir", tmp_path / "run")
    monkeypatch.undo()
    assert len(list((tmp_path / "cache" / "latents").iterdir())) == 2
    encoded = signal_at_call(monkeypatch, LatentEncoder, "_encode_case", -1)
    run(cache, "build", *command)
    assert len(encoded) == 4  # of six cases
    assert "train.log" not in capsys.readouterr().err  # no run has begun that writes it


def test_an_interrupted_synthesis_keeps_its_volumes(stage_2, workplace, tmp_path, monkeypatch):
    command = ["--model", stage_2, "--input-dir", workplace / "data" / "validation" / "labels"]
    command += ["--output-dir", tmp_path / "out"]
    signal_at_call(monkeypatch, Synthesizer, "sample", 2)
    with pytest.raises(Stopped, match="SIGTERM: the volumes that are finished stay in .*resumes"):
        run(synthesize, *command)
    # The first volume may be in the thread that writes when the signal arrives: it is finished.
    assert len(list((tmp_path / "out").glob("*.img.nii.gz"))) == 1
    assert len(list((tmp_path / "out").glob("*.json"))) == 1
    assert not list((tmp_path / "out").rglob("*.tmp"))
    monkeypatch.undo()
    # The label map of the other is read once, for its comparison with the training.
    read = signal_at_call(monkeypatch, sample_jobs, "read_labels", -1)
    run(synthesize, *command)
    assert len(read) == 1 and len(list((tmp_path / "out").glob("*.img.nii.gz"))) == 2


def test_an_interrupted_evaluation_says_that_it_starts_again(phantoms, tmp_path, monkeypatch):
    images, labels = phantoms / "validation" / "images", phantoms / "validation" / "labels"
    shutil.copytree(images, tmp_path / "synthesis")
    signal_at_call(monkeypatch, case_scores, "score_case", 1)
    with pytest.raises(Stopped, match="^SIGTERM: give the same command again$"):
        run(
            evaluate,
            *("--real", images, "--labels", labels, "--synthesis", tmp_path / "synthesis"),
            *("--output-dir", tmp_path / "out", "--workers", 1),
        )
    assert not (tmp_path / "out").exists()


def test_a_signal_waits_where_work_must_not_be_interrupted():
    with stop_signal.listening():
        os.kill(os.getpid(), signal.SIGUSR1)  # as in a training step
        done = []
        with pytest.raises(Stopped, match="SIGUSR1: nothing is lost"):
            interruptible(lambda: done.append(1), "nothing is lost")
        assert done == []
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_while_workers_start_waits_until_they_have_started():
    """A worker that gets no preparation data prints a traceback."""
    begun = []

    def work():
        with stop_signal.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            begun.append(1)
        begun.append(2)

    with pytest.raises(Stopped, match="SIGTERM: nothing is lost"):
        interruptible(work, "nothing is lost")
    assert begun == [1]


SIGNAL_AT_IMPORT = """
import os, signal, sys

class Finder:
    def find_spec(name, path, target=None):
        if name == "numpy":
            os.kill(os.getpid(), signal.SIGTERM)

sys.meta_path.insert(0, Finder)
"""


@pytest.mark.parametrize("command", ["train", "phantom"])
def test_a_signal_during_the_imports_of_a_command_is_answered_in_one_line(command, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(SIGNAL_AT_IMPORT)
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parent.parent)])
    done = subprocess.run(
        [sys.executable, "-m", f"tubesynth.{command}"],
        env={**os.environ, "PYTHONPATH": path, STOP_FILE: str(tmp_path / "stopped")},
        capture_output=True,
        text=True,
    )
    assert done.stderr == "stopped: SIGTERM: give the same command again\n"
    assert done.returncode == EXIT_STOPPED and (tmp_path / "stopped").exists()


def test_the_former_handlers_return():
    before = signal.getsignal(signal.SIGTERM)
    interruptible(lambda: None, "")
    assert signal.getsignal(signal.SIGTERM) is before
