"""Joining and leaving the process group."""

import os
from contextlib import nullcontext

import pytest
import torch
from conftest import free_port
from torch.nn.parallel import DistributedDataParallel

from tubesynth.errors import InputError, Stopped
from tubesynth.runtime import dist

SLURM = {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_STEP_ID": "0"}


@pytest.mark.parametrize("missing", ["MASTER_ADDR", "MASTER_PORT"])
def test_tasks_that_cannot_find_each_other_are_refused_before_they_wait(monkeypatch, missing):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    there = SLURM | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in there.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(missing)
    with pytest.raises(InputError, match=f"^{missing} is not set"):
        dist.start()


def threads() -> set[str]:
    """All of this process, Python's and the others."""
    return set(os.listdir("/proc/self/task"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads in /proc")
@pytest.mark.parametrize("raised", [None, Stopped])
def test_a_run_that_ends_leaves_no_thread_of_its_group(raised, monkeypatch):
    """Gloo's threads outlive destroy_process_group where a DDP wrapper is left to the collector."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name, value in dict(
        RANK=0, WORLD_SIZE=1, MASTER_ADDR="127.0.0.1", MASTER_PORT=free_port()
    ).items():
        monkeypatch.setenv(name, str(value))
    before = threads()
    dist.start()

    def work():
        net = DistributedDataParallel(torch.nn.Linear(2, 2))
        net.itself = net  # a model is full of such cycles
        net(torch.ones(1, 2)).sum().backward()
        assert threads() - before
        if raised:
            raise raised

    with nullcontext() if raised is None else pytest.raises(raised):
        try:
            work()
        finally:
            dist.stop()
            left = threads() - before
    assert not left
