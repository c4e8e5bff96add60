"""One run, one folder: a live run keeps others out, and what a dead one left is taken over."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from tubesynth.runtime import run_lock
from tubesynth.runtime.errors import InputError
from tubesynth.runtime.run_lock import NAME, RunLock, locked
from tubesynth.train import main

HOLDER = """
import sys, time
from pathlib import Path
from tubesynth.runtime import run_lock
run_lock.HEARTBEAT_SECONDS = 0.1
with run_lock.locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that has locked tmp_path."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.communicate()


def as_if_elsewhere(path) -> None:
    """The lock as a process of another machine would have written it."""
    stored = json.loads(path.read_text())
    stored["process"] = "00000000-1-1"
    times = path.stat().st_mtime
    path.write_text(json.dumps(stored))
    os.utime(path, (times, times))


def test_a_live_run_keeps_a_second_one_out(holder, tmp_path, workplace):
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=f"a run is writing to it .process {holder.pid} on "):
        main(["--config", str(workplace / "s1.yml"), "--run-dir", str(tmp_path)])
    assert sorted(tmp_path.iterdir()) == before


def test_the_lock_of_a_killed_run_is_taken_over_and_freed(holder, tmp_path, caplog):
    holder.kill()
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # also of a zombie
    with caplog.at_level("WARNING", logger="tubesynth"), locked(tmp_path) as lock:
        lock.require_own()
        assert f"taken over from the run of process {holder.pid} on" in caplog.text
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyError), locked(tmp_path):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_another_machine_keeps_the_lock_while_it_renews_it(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "STALE_SECONDS", 1.0)
    first, path = RunLock(tmp_path), tmp_path / NAME
    first.acquire()
    as_if_elsewhere(path)
    stale = time.time() - 2
    os.utime(path, (stale, stale))
    second = RunLock(tmp_path)
    second.owner["name"] = second.owner.pop("host")
    second.acquire()
    with pytest.raises(InputError, match="a run is writing to it"):
        first.require_own()  # as after a suspended machine
    as_if_elsewhere(path)
    started = time.monotonic()
    RunLock(tmp_path).require_free()  # renewed a moment ago, and no more
    assert time.monotonic() - started > 0.4
    for lock in (first, second):
        lock.ended.set()


def test_the_lock_in_a_copy_of_a_live_run_is_taken_over(tmp_path):
    live, copy = RunLock(tmp_path / "live"), RunLock(tmp_path / "copy")
    live.acquire()
    shutil.copytree(live.run_dir, copy.run_dir)
    copy.acquire()
    live.require_own()
    assert [lock.path.read_text() for lock in (live, copy)] == [live.text, copy.text]
    copy.release()
    live.release()
    assert not live.path.exists() and not copy.path.exists()


def test_a_renewed_lock_of_another_machine_is_live(tmp_path, monkeypatch):
    path = tmp_path / NAME
    path.write_text(json.dumps({"process": "00000000-1-1", "pid": 1, "host": "other"}))
    monkeypatch.setattr(run_lock.time, "sleep", lambda seconds: os.utime(path, (1e9, 1e9)))
    with pytest.raises(InputError, match="process 1 on other"):
        RunLock(tmp_path).require_free()


def test_an_unreadable_lock_is_taken_over_once_it_is_stale(tmp_path):
    path = tmp_path / NAME
    path.write_bytes(b"\xff{")
    os.utime(path, (1e9, 1e9))
    with locked(tmp_path):
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_a_new_folder_without_files_is_removed(tmp_path):
    with pytest.raises(InputError), locked(tmp_path / "run"):
        raise InputError
    assert not (tmp_path / "run").exists()
