"""Several ranks on this machine: their launcher, exit codes, signals, and ranks that hang."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import lines

from tubesynth.runtime.errors import EXIT_INPUT, EXIT_STOPPED, InputError
from tubesynth.runtime.rank_watch import RankStatus, hung_ranks, rank_timeout

LAUNCH = "from tubesynth.runtime.launcher import launch; launch('scripted_rank', {arguments}, 2)"
RANK = """
import os, signal, sys, time
from pathlib import Path
folder, rank, action = Path(sys.argv[1]), os.environ["RANK"], sys.argv[2]
if action == "save":
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
    (folder / f"{rank}.pid").write_text(str(os.getpid()))
    while not stopped:
        time.sleep(0.05)
    time.sleep(2 + int(rank))
    (folder / f"{rank}.saved").touch()
    sys.exit(75)
if action == "alone":
    if rank == "0":
        time.sleep(300)
    sys.exit(75)
if action == "wrong":
    sys.exit(2)
if rank == "1":
    os.kill(os.getpid(), signal.SIGKILL)
"""


def launched(folder: Path, action: str) -> subprocess.Popen:
    (folder / "scripted_rank.py").write_text(RANK)
    arguments = [str(folder), action]
    path = os.pathsep.join([str(folder), *sys.path])
    return subprocess.Popen(
        [sys.executable, "-c", LAUNCH.format(arguments=arguments)],
        env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(folder: Path, pattern: str, number: int = 2) -> None:
    deadline = time.monotonic() + 300
    while len(list(folder.glob(pattern))) < number:
        assert time.monotonic() < deadline, f"no {number} files {pattern}"
        time.sleep(0.05)


def test_a_rank_that_is_stopped_before_all_have_met_stops_the_others(tmp_path):
    process = launched(tmp_path, "alone")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == EXIT_STOPPED and errors == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_the_launcher_waits_until_all_ranks_have_saved(number, tmp_path):
    process = launched(tmp_path, "save")
    wait_for(tmp_path, "*.pid")
    process.send_signal(number)
    _, message = process.communicate(timeout=300)
    assert process.returncode == EXIT_STOPPED, message
    assert len(list(tmp_path.glob("*.saved"))) == 2 and message == ""


def test_the_launcher_ends_with_the_code_of_its_ranks(tmp_path):
    process = launched(tmp_path, "wrong")
    _, message = process.communicate(timeout=300)
    assert process.returncode == EXIT_INPUT and message == ""


def test_a_killed_rank_is_named(tmp_path):
    process = launched(tmp_path, "die")
    _, message = process.communicate(timeout=300)
    assert process.returncode == 1
    assert message.startswith("error: rank 1 (process ") and "was killed by SIGKILL" in message


@pytest.fixture
def two_ranks(workplace, stage_1, tmp_path):
    """Starts a training on two ranks by --gpus 2: (launcher, {rank: process id}) in a long run."""
    processes = []

    def start(**environment: str) -> tuple[subprocess.Popen, dict[int, int]]:
        command = [sys.executable, "-m", "tubesynth.train", "--config", str(workplace / "s1.yml")]
        command += ["--run-dir", str(tmp_path / "run"), "--gpus", "2", "--logger", "none"]
        command += ["train.epochs=100000", "train.validate_every=100000"]
        command += ["train.panel_every=100000", "train.save_every=100000"]
        process = subprocess.Popen(
            command, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True
        )
        processes.append(process)
        wait_for(tmp_path, "run/metrics.jsonl", 1)
        while '"training"' not in (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8"):
            time.sleep(0.05)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        return process, dict(enumerate(map(int, children.split())))

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_a_rank_that_does_not_respond_is_named_and_the_run_ends(two_ranks):
    process, ranks = two_ranks(TUBESYNTH_RANK_TIMEOUT="8")
    os.kill(ranks[0], signal.SIGSTOP)
    _, message = process.communicate(timeout=300)
    assert process.returncode == 1
    (line,) = [line for line in message.splitlines() if line.startswith("error: ")]
    assert f"rank 0: process {ranks[0]} on " in line and "has not responded for " in line


@pytest.mark.slow
def test_ranks_of_a_killed_launcher_save_and_end(two_ranks, tmp_path):
    process, ranks = two_ranks()
    process.kill()
    deadline = time.monotonic() + 300
    while any(Path(f"/proc/{pid}").exists() for pid in ranks.values()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all(two_ranks, tmp_path):
    process, ranks = two_ranks()
    os.kill(ranks[1], signal.SIGUSR1)
    _, message = process.communicate(timeout=300)
    assert process.returncode == EXIT_STOPPED
    assert sum(line.startswith("stopped: ") for line in message.splitlines()) == 1
    step = int(message.split("saved at step ")[1].split(";")[0])
    assert lines(tmp_path / "run")[-1]["step"] == step


def status(still_seconds: float, in_collective: bool) -> RankStatus:
    return RankStatus("process 1 on n1", 5, still_seconds, "files.py:3, read", in_collective)


def test_the_rank_outside_of_a_collective_is_the_one_that_hangs():
    awake = {0: 0.0, 1: 1.0}
    waiting, reading, working = status(90, True), status(80, False), status(0, False)
    assert hung_ranks({0: waiting, 1: working}, awake, 60) == {}  # rank 1 is slow, and works
    assert hung_ranks({0: waiting, 1: reading}, awake, 60) == {
        1: "process 1 on n1 has been in files.py:3, read for 80 s"
    }
    assert set(hung_ranks({0: waiting, 1: waiting}, awake, 60)) == {0, 1}
    assert list(hung_ranks({0: waiting, 1: working}, {0: 0.0, 1: 61.0}, 60)) == [1]


@pytest.mark.parametrize("text", ["soon", "0", "-5", "nan"])
def test_a_wrong_timeout_is_refused(text, monkeypatch):
    monkeypatch.setenv("TUBESYNTH_RANK_TIMEOUT", text)
    with pytest.raises(InputError, match=f"TUBESYNTH_RANK_TIMEOUT={text}: give a number"):
        rank_timeout()
