"""Processes and devices of a program that runs alone, under torchrun, or under srun.

Collectives run on all ranks or on none. Rank 0 writes the files.
"""

import gc
import os
import sys
import traceback
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist

# At its import this module stores the current process group in default arguments. It is imported
# before a group exists, or DistributedDataParallel would import it later and keep the group alive.
import torch.distributed.nn.functional

from tubesynth.runtime import log, stop_signal
from tubesynth.runtime.errors import InputError, SharedError, Stopped, make_stop_file
from tubesynth.runtime.meeting import STORE_TIMEOUT, meet
from tubesynth.runtime.rank_watch import RankWatch

Result = TypeVar("Result")


class _Group:
    """The process group that this module has joined."""

    watch: RankWatch | None = None


DEVICES = ("auto", "cpu", "cuda")  # the choices of --device


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def _from_slurm() -> None:
    """Translate srun's variables into torchrun's; the batch script sets MASTER_ADDR and _PORT."""
    if "RANK" in os.environ or int(os.environ.get("SLURM_NTASKS", "1")) < 2:
        return
    if "SLURM_PROCID" not in os.environ or "SLURM_STEP_ID" not in os.environ:
        return
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise InputError(
            f"{missing[0]} is not set: srun starts several tasks, and they must find each other:"
            " export MASTER_ADDR and MASTER_PORT in the batch script as launch/slurm.sbatch does"
        )
    os.environ["RANK"] = os.environ["SLURM_PROCID"]
    os.environ["LOCAL_RANK"] = os.environ["SLURM_LOCALID"]
    os.environ["WORLD_SIZE"] = os.environ["SLURM_NTASKS"]


def gpu_index() -> int:
    """The number of this process's GPU: that of the process, or 0 under srun --gpus-per-task, by
    which each task sees its own GPUs alone.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    is_task = os.environ.get("RANK") == os.environ.get("SLURM_PROCID")
    return 0 if is_task and "SLURM_GPUS_PER_TASK" in os.environ else local_rank


def uses_gpu(device: str, processes: int = 1) -> bool:
    """Whether --device (auto, cpu or cuda) selects GPUs, one for each process of this machine.

    InputError for cuda without a GPU, and where the machine has fewer GPUs than processes.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "--device cuda: torch finds no GPU on this machine: check nvidia-smi and the installed"
            " build of torch, or use --device cpu"
        )
    if device == "cpu" or not torch.cuda.is_available():
        return False
    if processes > torch.cuda.device_count():
        raise InputError(
            f"process {processes - 1} of this machine has no GPU: it has"
            f" {torch.cuda.device_count()}: start at most that many processes"
        )
    return True


def start(device: str = "auto") -> torch.device:
    """Join the process group if a launcher has started one; returns this process's device.

    device: auto, cpu or cuda. Sets up the log, to which only rank 0 writes. From here on signals
    are stored until work in `interruptible`.
    """
    _from_slurm()
    if log.logger.handlers:  # a command has set it up; its lines of before are kept
        log.set_level()
    else:
        log.set_up()
    gpu = gpu_index()
    cuda = uses_gpu(device, gpu + 1)
    if cuda:
        torch.cuda.set_device(gpu)
    if "RANK" in os.environ and not dist.is_initialized():
        store, rank, world_size = meet()
        stop_signal.defer()
        _Group.watch = RankWatch(rank, world_size)
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            store=store,
            rank=rank,
            world_size=world_size,
            timeout=STORE_TIMEOUT,
        )
    stop_signal.defer()
    return torch.device("cuda", gpu) if cuda else torch.device("cpu")


def stop() -> None:
    """Leave the process group.

    A run that ends on all ranks (done, or stopped by a signal) ends together on all of them, and no
    thread of the group is left.
    """
    if not dist.is_initialized():
        return
    error, _, trace = sys.exc_info()
    together = error in (None, Stopped)
    if error is Stopped and is_main():
        make_stop_file()  # before any rank ends: srun ends the others with the first
    if together:
        # Gloo may abort a rank whose peer closes its connections first, and a launcher kills the
        # other ranks when one exits with a code, even while rank 0 is saving. After an error no
        # rank waits, because others may have ended already.
        dist.barrier()
    if _Group.watch:
        _Group.watch.stop()
        _Group.watch = None
    dist.destroy_process_group()
    if together:
        # DDP wrappers, in reference cycles and in the frames of the exception, hold the group. Its
        # threads would run into the shutdown of the interpreter.
        traceback.clear_frames(trace)
        gc.collect()


def sum_over_ranks(*values: float) -> list[float]:
    """Each value summed over all ranks, in float64."""
    return _reduced(values, dist.ReduceOp.SUM)


def max_over_ranks(value: float) -> float:
    """The largest of the ranks' values, on every rank."""
    return _reduced((value,), dist.ReduceOp.MAX)[0]


def _reduced(values: tuple[float, ...], operation) -> list[float]:
    if not dist.is_initialized() or not values:
        return list(values)
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    packed = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(packed, operation)
    return packed.tolist()


def summed(tensor: torch.Tensor) -> torch.Tensor:
    """A copy on the CPU of the tensor's sum over all ranks, on every rank."""
    tensor = tensor.clone()
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor.cpu()


def mean_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's mean over all ranks, on every rank."""
    if not dist.is_initialized():
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def gather_rows(rows: list[dict]) -> list[dict]:
    """The rows of all ranks, on every rank, in the order of the ranks."""
    if not dist.is_initialized():
        return rows
    gathered: list[list[dict]] = [[]] * world_size()
    dist.all_gather_object(gathered, rows)
    return [row for rank_rows in gathered for row in rank_rows]


def together(work: Callable[[], Result]) -> Result:
    """work() on every rank; an InputError of one rank is raised on all of them, as SharedError."""
    results, refusals = [], []
    try:
        results.append(work())
    except InputError as error:
        refusals.append({"message": str(error)})
    refusals = gather_rows(refusals)
    if refusals:
        raise SharedError(refusals[0]["message"])
    return results[0]


def any_rank(flag: bool) -> bool:
    """Whether the flag is true on any rank, on every rank."""
    return sum_over_ranks(float(flag))[0] > 0


def read(scalars: list[torch.Tensor], flag: bool) -> tuple[list[float], bool]:
    """The scalars on the host, and `any_rank` of the flag, with one wait for the device."""
    if not dist.is_initialized() or not scalars:
        return (torch.stack(scalars).tolist() if scalars else []), any_rank(flag)
    flags = torch.full_like(scalars[0], float(flag))
    dist.all_reduce(flags)
    *numbers, count = torch.stack([*scalars, flags]).tolist()
    return numbers, count > 0


def interruptible(work: Callable[[], Result], message: str | Callable[[], str]) -> Result:
    """work() on every rank, without collectives in it; then the ranks wait for each other.

    Stopped on every rank, with the text `message`, if a signal has reached any of them meanwhile.
    """
    return stop_signal.interruptible(work, message, any_rank)
