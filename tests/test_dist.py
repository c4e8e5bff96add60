"""Joining and leaving the process group."""

import os
import socket
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from refusals import refused_command
from torch.nn.parallel import DistributedDataParallel

from tubesynth.runtime import dist
from tubesynth.runtime.errors import InputError, Stopped, run_command
from tubesynth.runtime.meeting import meet

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


@pytest.mark.parametrize(
    ("variables", "index"),
    [
        ({}, 0),
        ({"RANK": "5", "LOCAL_RANK": "1"}, 1),
        ({"RANK": "5", "LOCAL_RANK": "1", "SLURM_PROCID": "5"}, 1),  # --gpus-per-node
        ({"RANK": "5", "LOCAL_RANK": "1", "SLURM_PROCID": "5", "SLURM_GPUS_PER_TASK": "1"}, 0),
        # torchrun in a task with four GPUs
        ({"RANK": "5", "LOCAL_RANK": "1", "SLURM_PROCID": "1", "SLURM_GPUS_PER_TASK": "4"}, 1),
    ],
)
def test_a_task_with_gpus_of_its_own_takes_the_first_of_them(variables, index, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "SLURM_GPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert dist.gpu_index() == index


@pytest.mark.parametrize(
    ("rank", "message"),
    [
        (0, "ranks 1, 2 of 3 did not come within 1 s: "),
        (2, r"MASTER_ADDR=127.0.0.1 MASTER_PORT=\d+: rank 0 does not answer there \("),
    ],
)
def test_ranks_that_do_not_come_are_named(rank, message, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {"RANK": rank, "WORLD_SIZE": 3, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in {**variables, "TUBESYNTH_RANK_TIMEOUT": 1}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(InputError, match=f"^{message}"):
        meet()
    monkeypatch.delenv("WORLD_SIZE")
    with pytest.raises(InputError, match="^WORLD_SIZE=: "):
        meet()


def test_the_loss_of_another_rank_is_an_error_of_one_line(monkeypatch, capsys):
    def lose():
        raise RuntimeError("[pair.cc:534]\nConnection closed by peer [127.0.0.1]:9999")

    monkeypatch.setenv("RANK", "0")
    assert refused_command(lose, capsys, code=1).startswith("another rank has ended")
    monkeypatch.delenv("RANK")
    with pytest.raises(RuntimeError):  # of another connection
        run_command(lose)


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
