"""How much memory is free, and how much was used at most."""

import resource
import sys
from pathlib import Path

import torch


def free_bytes(device: torch.device) -> int:
    """Of the GPU, or what the system can give without swapping; limits of a container or a batch
    job count.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + cached
    return min([_from_meminfo(), *left_by_control_groups()])


def left_by_control_groups(
    groups=Path("/proc/self/cgroup"), root=Path("/sys/fs/cgroup")
) -> list[int]:
    """Bytes that each control group of this process, and each above it, leaves of its limit.

    Both versions of control groups. Files that were read stay in memory until it is wanted for
    something else: what of them the kernel would give back first is no use of memory.
    """
    left = []
    for line in groups.read_text(encoding="utf-8").splitlines() if groups.is_file() else ():
        _, controllers, place = line.split(":", 2)
        if controllers == "":
            top, limit, used, cached = root, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            top, cached = root / "memory", "total_inactive_file"
            limit, used = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        folder = top / place.lstrip("/")
        for here in (folder, *folder.parents)[: len(folder.parts) - len(top.parts) + 1]:
            if not (here / limit).is_file() or not (most := _number(here / limit)):
                continue
            statistics = dict(map(str.split, (here / "memory.stat").read_text().splitlines()))
            left.append(max(most - _number(here / used) + int(statistics.get(cached, 0)), 0))
    return left


def _number(file: Path) -> int:
    """What a control group's file says; 0 for `max`, no limit."""
    text = file.read_text(encoding="utf-8").strip()
    return 0 if text == "max" else int(text)


def _from_meminfo() -> int:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux
    return 4 * 2**30  # an assumption that any machine for this work fulfils


def peak_mb(device: torch.device) -> float:
    """Largest so far: allocated on the GPU where there is one, else resident in the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
