"""Joining and leaving the process group."""

import os
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from tubesynth.runtime import dist
from tubesynth.runtime.errors import InputError, Stopped

SLURM = {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_STEP_ID": "0"}


@pytest.mark.parametrize("missing", ["MASTER_ADDR", "MASTER_PORT"])
def test_slurm_tasks_without_a_master_address_are_refused_before_they_wait(monkeypatch, missing):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    variables = SLURM | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(missing)
    with pytest.raises(InputError, match=f"^{missing} is not set"):
        dist.start()


GROUP_THREADS = ("gloo", "pt_gloo", "pt_tcpstore")  # the names of the threads of torch and gloo
DEADLINE_SECONDS = 300.0


def group_threads() -> set[str]:
    """Ids of this process's threads that belong to a process group."""
    ids = set()
    for task in Path("/proc/self/task").iterdir():
        try:
            name = (task / "comm").read_text()
        except (FileNotFoundError, ProcessLookupError):  # the thread has ended
            continue
        if name.startswith(GROUP_THREADS):
            ids.add(task.name)
    return ids


def wait_until(condition) -> bool:
    """Whether the condition holds before the deadline; threads start and end with a delay."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="reads threads in /proc")
@pytest.mark.parametrize("raised", [None, Stopped])
def test_a_run_that_ends_leaves_no_thread_of_its_group(raised, monkeypatch):
    """Gloo's threads outlive destroy_process_group where a DDP wrapper is left to the collector."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name, value in dict(
        RANK=0,
        WORLD_SIZE=1,
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=0,  # a port that the system chooses
    ).items():
        monkeypatch.setenv(name, str(value))
    before = group_threads()
    dist.start()

    def work():
        net = DistributedDataParallel(torch.nn.Linear(2, 2))
        net.itself = net  # a reference cycle, as in most models
        net(torch.ones(1, 2)).sum().backward()
        assert wait_until(lambda: group_threads() - before)
        if raised:
            raise raised

    with nullcontext() if raised is None else pytest.raises(raised):
        try:
            work()
        finally:
            dist.stop()
    assert wait_until(lambda: not group_threads() - before)
