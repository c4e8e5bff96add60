"""Text, pictures and checkpoints are written whole or not at all; a full disk is one line."""

import json
import resource
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from tubesynth.build.checkpoint import Best, Checkpoint, PhaseState, Position
from tubesynth.config.schema import Stage1Config
from tubesynth.runtime.atomic import replacing, save_png, write_text
from tubesynth.runtime.errors import InputError
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


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
