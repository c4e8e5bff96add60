"""Processes and devices: the same program alone, under torchrun, and under srun.

Collectives run on all ranks or on none; files are written by rank 0.
"""

import datetime
import gc
import os
import signal
import sys
import traceback

import torch
import torch.distributed as dist

# DistributedDataParallel imports it, and the functions there keep the group of that moment as a
# default, for ever. Imported here, before there is a group, they keep none.
import torch.distributed.nn.functional

from tubesynth.runtime.errors import InputError, Stopped


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


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


def start() -> torch.device:
    """Join the process group where there is one, and return this process's device."""
    _from_slurm()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    cuda = torch.cuda.is_available()
    if cuda:
        if local_rank >= torch.cuda.device_count():
            raise InputError(
                f"process {local_rank} of this machine has no GPU: it has"
                f" {torch.cuda.device_count()}: start at most that many processes"
            )
        torch.cuda.set_device(local_rank)
    if "RANK" in os.environ and not dist.is_initialized():
        dist.init_process_group("nccl" if cuda else "gloo", timeout=datetime.timedelta(minutes=60))
    return torch.device("cuda", local_rank) if cuda else torch.device("cpu")


def stop() -> None:
    """Leave the process group. Where a run ends on all ranks (done, or stopped by a signal), they
    end together, and the group's threads with it.
    """
    if not dist.is_initialized():
        return
    error, _, trace = sys.exc_info()
    together = error in (None, Stopped)
    if together:
        # Gloo may abort a rank whose peer closes its connections first, and a launcher kills the
        # others when one leaves with a code, even where rank 0 still saves. After an error nobody
        # waits: the others may be gone.
        dist.barrier()
    dist.destroy_process_group()
    if together:
        # DDP wrappers, in cycles of references and in the frames of what was raised, hold the
        # group: its threads would run on into the end of the interpreter.
        traceback.clear_frames(trace)
        gc.collect()


def sum_over_ranks(*values: float) -> list[float]:
    """Each value summed over all ranks, in float64."""
    if not dist.is_initialized():
        return list(values)
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    packed = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(packed)
    return packed.tolist()


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
    gathered = [None] * world_size()
    dist.all_gather_object(gathered, rows)
    return [row for part in gathered for row in part]


def any_rank(flag: bool) -> bool:
    """True on every rank where it is true on one."""
    return sum_over_ranks(float(flag))[0] > 0


def relaunch(module: str, arguments: list[str], processes: int) -> None:
    """Run `python -m module arguments` in that many processes, and leave with their exit code.

    A signal is passed on to the processes, which save and end; Stopped is raised here.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser, run

    options = ["--standalone", f"--nproc-per-node={processes}", "-m", module, *arguments]
    # The launcher knows SIGTERM and its kin; SIGUSR1 means the same here.
    signal.signal(signal.SIGUSR1, lambda number, frame: os.kill(os.getpid(), signal.SIGTERM))
    try:
        run(get_args_parser().parse_args(options))
    except SignalException as error:
        name = signal.Signals(error.sigval).name
        raise Stopped(f"{name}: its processes have saved; the same command goes on") from None
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        raise SystemExit(failure.exitcode if failure.exitcode > 0 else 1) from None
