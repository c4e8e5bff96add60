"""Where the time of a training goes: seconds by section, exclusive of the sections within it.

    profiler = Profiler(device)
    with profiler("forward"):
        ...
    print("\n".join(profiler.table()))

A GPU works asynchronously, so each section ends with a wait for it. Steps are therefore a little
slower than without a profiler.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch

OTHER = "other"  # outside of all sections


class Profiler:
    """Seconds and number of calls of each section since it was made; inactive without a device."""

    def __init__(self, device: torch.device | None = None):
        self.device = device
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()
        self.section, self.since = OTHER, time.perf_counter()

    @contextmanager
    def __call__(self, section: str) -> Iterator[None]:
        if self.device is None:
            yield
            return
        outer = self._switch(section)
        self.calls[section] += 1
        try:
            yield
        finally:
            self._switch(outer)

    def _switch(self, section: str) -> str:
        """Begin a section; returns the one that ends or is interrupted."""
        if self.device is not None and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now, outer = time.perf_counter(), self.section
        self.seconds[outer] += now - self.since
        self.section, self.since = section, now
        return outer

    def table(self) -> list[str]:
        """The lines of the table, the longest section first; [] where it is inactive."""
        if self.device is None:
            return []
        self._switch(self.section)
        total = sum(self.seconds.values())
        lines = [f"{'section':14}{'share':>8}{'seconds':>12}{'calls':>10}{'s a call':>12}"]
        for section, seconds in sorted(self.seconds.items(), key=lambda item: -item[1]):
            calls = self.calls[section]
            count, mean = (f"{calls}", f"{seconds / calls:.4g}") if calls else ("", "")
            lines.append(f"{section:14}{seconds / total:8.1%}{seconds:12.2f}{count:>10}{mean:>12}")
        return [*lines, f"{'total':14}{1:8.1%}{total:12.2f}"]


INACTIVE = Profiler()
