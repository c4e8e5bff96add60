"""Functions and trainings on two ranks: processes that are forked from a server with torch loaded.

A process that imports torch and its compiler takes five seconds of a core before it begins.
"""

import os
import tempfile
from pathlib import Path

import torch
from torch import distributed, multiprocessing

from tubesynth.train import main


def _rank(rank: int, folder: Path, function, arguments: tuple) -> None:
    """The ranks meet in a new file: no port can be taken meanwhile."""
    # As a launcher sets it: the logger of every rank but 0 writes nothing.
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    method = f"file://{folder / 'meeting'}"
    distributed.init_process_group("gloo", init_method=method, rank=rank, world_size=2)
    torch.save(function(rank, *arguments), folder / f"rank_{rank}.pt")
    if distributed.is_initialized():  # a training leaves the group by itself
        distributed.destroy_process_group()


def on_two_ranks(folder: Path, function, *arguments) -> list:
    """[function(rank, *arguments) for rank in (0, 1)], in two processes.

    They meet in a new folder: addresses of an earlier call's ranks would be waited for in vain.
    """
    folder = Path(tempfile.mkdtemp(dir=folder))
    multiprocessing.start_processes(
        _rank, (folder, function, arguments), nprocs=2, start_method="forkserver"
    )
    return [torch.load(folder / f"rank_{rank}.pt", weights_only=True) for rank in (0, 1)]


def _train(rank: int, arguments: list[str]) -> None:
    main(arguments)


def train_on_two_ranks(folder: Path, *arguments) -> None:
    """`tubesynth train` with these arguments, on two ranks."""
    on_two_ranks(folder, _train, [str(argument) for argument in arguments])
