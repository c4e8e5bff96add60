"""Text, pictures and checkpoints are written whole or not at all; a full disk is one line."""

import json
import os
import resource
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from tubesynth.build.checkpoint import Best, Checkpoint, PhaseState, Position
from tubesynth.config.schema import Stage1Config
from tubesynth.runtime.atomic import replacing, save_png, write_text
from tubesynth.runtime.errors import InputError
from tubesynth.runtime.process_id import ProcessId
from tubesynth.runtime.run_log import RunLog
from tubesynth.volume.files import write_volume
from tubesynth.volume.grid import Volume

WRITERS = {
    "text": lambda path: write_text(path, "x" * 99_999),
    "picture": lambda path: save_png(
        path, np.random.default_rng(0).integers(0, 255, (128, 128, 3), dtype=np.uint8)
    ),
    "checkpoint": lambda path: Checkpoint(
        Stage1Config(stage=1),
        Position(),
        Best("loss", "min"),
        {"autoencoder": PhaseState({"weight": torch.ones(99_999)}, {}, {}, {})},
    ).save(path),
    "volume": lambda path: write_volume(
        path.with_suffix(".nii"), Volume(np.ones((64, 64, 9), np.int16), np.eye(4)), "int16"
    ),
}


@contextmanager
def files_of_at_most(size):
    """The kernel refuses to write more bytes, as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_that_does_not_fit_on_the_disk_is_refused_and_removed(kind, tmp_path):
    path = tmp_path / "out" / "file"
    with files_of_at_most(8192), pytest.raises(InputError, match=r"file.*free space"):
        WRITERS[kind](path)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_where_the_folder_should_be_is_refused(kind, tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(InputError, match="out.*choose another folder"):
        WRITERS[kind](tmp_path / "out" / "file")


def test_scores_that_do_not_fit_on_the_disk_are_refused_by_the_log(tmp_path):
    log = RunLog(tmp_path, "stage: 1\n", "none", 0)
    with files_of_at_most(4096), pytest.raises(InputError, match=r"metrics\.jsonl.*free space"):
        for step in range(200):
            log.scalars(step, 0, "train", {"loss": 0.25})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["loss"] == 0.25


def test_a_name_of_the_longest_length_is_written_in_any_script(tmp_path):
    for letter in "aö心":
        name = letter * (250 // len(letter.encode())) + ".txt"
        write_text(tmp_path / name, letter)
        assert (tmp_path / name).read_text(encoding="utf-8") == letter


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_is_on_the_disk_before_its_rename_and_the_rename_after(tmp_path, monkeypatch):
    """The order survives a loss of power; a rename that overtakes its bytes leaves zeros."""
    calls, replace = [], os.replace
    monkeypatch.setattr(
        os, "fsync", lambda handle: calls.append(os.readlink(f"/proc/self/fd/{handle}"))
    )
    monkeypatch.setattr(os, "replace", lambda *names: (calls.append("rename"), replace(*names)))
    write_text(tmp_path / "a.txt", "new")
    temporary, *others = calls
    assert temporary.endswith(".tmp") and others == ["rename", str(tmp_path)]


KILLED_WRITER = """
import os, sys, time
from pathlib import Path
from tubesynth.runtime.atomic import replacing
with replacing(Path(sys.argv[1])) as temporary:
    temporary.write_bytes(b"half")
    print("writes", flush=True)
    time.sleep(60)
"""


def test_the_next_write_removes_the_temporaries_of_killed_writers_and_no_other(tmp_path):
    killed, live = (
        subprocess.Popen(
            [sys.executable, "-c", KILLED_WRITER, tmp_path / name],
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("killed.ckpt", "live.ckpt")
    )
    for process in (killed, live):
        assert process.stdout.readline() == "writes\n"
    killed.kill()
    os.waitid(os.P_PID, killed.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie
    stays = [*tmp_path.glob(".live.ckpt.*.tmp"), tmp_path / ".notes.tmp", tmp_path / "a.tmp"]
    two_hours_ago = time.time() - 7200
    for writer in ("00000000-1-1", "123"):  # of another machine, and of version 0.2.0
        stays.append(tmp_path / f".new.{writer}.00000000.tmp")
        stays[-1].touch()
        (tmp_path / f".old.{writer}.00000000.tmp").touch()
        os.utime(tmp_path / f".old.{writer}.00000000.tmp", (two_hours_ago, two_hours_ago))
    for path in stays[1:3]:
        path.touch()
        os.utime(path, (two_hours_ago, two_hours_ago))
    write_text(tmp_path / "text", "x")
    assert {*tmp_path.iterdir()} == {*stays, tmp_path / "text"}
    for process in (killed, live):
        process.kill()
        process.communicate()


def test_a_process_is_known_by_machine_number_and_start():
    own = ProcessId.own()
    assert ProcessId.parse(str(own)) == own and own.runs is True
    assert own._replace(start=own.start - 1).runs is False  # its number was used before
    assert own._replace(machine="00000000").runs is None
    child = subprocess.Popen(["true"])
    child.wait()
    assert own._replace(pid=child.pid).runs is False
    assert [ProcessId.parse(text) for text in ("", "12", "x-1-2", f"{own}0-1")] == [None] * 4
