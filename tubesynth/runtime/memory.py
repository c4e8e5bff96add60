"""The free memory and the peak memory of a GPU or of this process, in bytes and MB.

torch is imported where it is needed only: processes that read files start fast without it.
"""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tubesynth.runtime.errors import InputError

if TYPE_CHECKING:
    import torch


def check_fits(num_bytes: int, path: Path) -> None:
    """InputError where reading a file takes more memory than is available."""
    if num_bytes > (available := available_bytes()):
        raise InputError(
            f"{path}: by its size and header it takes {num_bytes / 2**30:.3g} GiB of memory, and"
            f" {available / 2**30:.3g} GiB are available; crop it, convert it again if the header"
            " is wrong, or use a machine with more memory"
        )


def free_bytes(device: torch.device) -> int:
    """The free memory of the GPU, or the memory that is available to the CPU."""
    if device.type == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + cached
    return available_bytes()


def available_bytes() -> int:
    """The memory that is available to the CPU without swapping, within the limits of a container
    or of a batch job.
    """
    return min([_from_meminfo(), *(free for _, free in control_groups())])


def total_bytes() -> int:
    """The memory of this machine, or of this container or batch job where it has less."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    limits += [limit for limit, _ in control_groups()]
    job_mb = os.environ.get("SLURM_MEM_PER_NODE", "")
    if job_mb.isdecimal() and int(job_mb) > 0:  # 0: all of the node
        limits.append(int(job_mb) * 2**20)
    return min(limits)


def control_groups(
    groups=Path("/proc/self/cgroup"), root=Path("/sys/fs/cgroup")
) -> list[tuple[int, int]]:
    """(limit, free) in bytes of each control group (version 1 or 2) of this process and of its
    parents that has a limit.

    The kernel counts cached files as used, but frees them first, so they are counted as free.
    """
    left = []
    for line in groups.read_text(encoding="utf-8").splitlines() if groups.is_file() else ():
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            top, limit, used, cached = root, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            top, cached = root / "memory", "total_inactive_file"
            limit, used = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        folder = top / group.lstrip("/")
        for level in (folder, *folder.parents)[: len(folder.parts) - len(top.parts) + 1]:
            if not (level / limit).is_file() or not (limit_bytes := _number(level / limit)):
                continue
            statistics = dict(map(str.split, (level / "memory.stat").read_text().splitlines()))
            free = limit_bytes - _number(level / used) + int(statistics.get(cached, 0))
            left.append((limit_bytes, max(free, 0)))
    return left


def _number(file: Path) -> int:
    """The number in a control group's file; 0 for `max`, which means no limit."""
    text = file.read_text(encoding="utf-8").strip()
    return 0 if text == "max" else int(text)


def _from_meminfo() -> int:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except FileNotFoundError:
        pass  # not Linux
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def gpu_mb(device: torch.device) -> dict[str, float]:
    """The memory of the GPU that all programs use, and all of it; {} on a CPU."""
    if device.type != "cuda":
        return {}
    import torch

    free, total = torch.cuda.mem_get_info(device)
    return {"gpu_used_mb": (total - free) / 2**20, "gpu_total_mb": total / 2**20}


def peak_mb(device: torch.device) -> float:
    """The peak since the process started: allocated GPU memory, or resident memory on a CPU."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
