"""How much memory is free, and how much was used at most."""

import resource
import sys
from pathlib import Path

import torch


def free_bytes(device: torch.device) -> int:
    """Of the GPU, or what the system can give without swapping; a container's limit counts."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + cached
    free = _from_meminfo()
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if limit.is_file() and limit.read_text(encoding="utf-8").strip() != "max":
        free = min(
            free, int(limit.read_text(encoding="utf-8")) - int(used.read_text(encoding="utf-8"))
        )
    return free


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
