"""Seconds and peak memory of a function, and its line of JSON.

Needs the standard library only and no package of ours, so that a peer's Python can time its side
with the same ruler. Memory is the proportional set size of the process and its children (a page
that n of them share counts 1/n in each), sampled while the work runs once more, untimed.
"""

import json
import os
import statistics
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SAMPLE_SECONDS = 0.02


@dataclass(frozen=True)
class Measurement:
    """Seconds of each timed repeat, by the clock and of all cores together; the peak in MB (1e6
    bytes). Values that only Linux has are None on other systems."""

    times: list[float]
    cpu_times: list[float]
    peak_mb: float | None

    @property
    def seconds(self) -> float:
        return statistics.median(self.times)

    @property
    def cpu_seconds(self) -> float | None:
        """Seconds of all cores for the work, without those of other programs."""
        return statistics.median(self.cpu_times) if any(self.cpu_times) else None

    @property
    def spread(self) -> float:
        """(slowest - fastest) / median of the repeats."""
        return (max(self.times) - min(self.times)) / self.seconds


def measure(
    work: Callable[[], None],
    repeats: int,
    before: Callable[[], None] | None = None,
    warm_up: bool = True,
) -> Measurement:
    """The Measurement of work(), which leaves nothing running; once untimed first, to warm up and
    to see its memory, unless that has been done.

    before() runs ahead of each work() and is not timed.
    """
    times, cpu_times, memory = [], [], PeakMemory()
    for number in range(0 if warm_up else 1, repeats + 1):
        if before:
            before()
        if number == 0:
            with memory:
                work()
            continue
        cpu, start = _cpu_seconds(), time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
        cpu_times.append(_cpu_seconds() - cpu)
    return Measurement(times, cpu_times, memory.peak_mb)


class PeakMemory:
    """Samples the memory of this process and its descendants while a block runs."""

    peak_mb: float | None = None

    def __enter__(self):
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.thread.join()

    def _watch(self) -> None:
        while True:
            sizes = [_proportional_kb(pid) for pid in _family(os.getpid())]
            if any(sizes):
                self.peak_mb = max(self.peak_mb or 0.0, sum(sizes) * 1024 / 1e6)
            if self.done.wait(SAMPLE_SECONDS):
                return


def _family(root: int) -> list[int]:
    """A process and its descendants."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text(encoding="utf-8").rpartition(")")[2].split()[1])
        except (OSError, ValueError):  # the process has just ended
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    processes = [root]
    for pid in processes:
        processes += children.get(pid, [])
    return processes


def _cpu_seconds() -> float:
    """User and system time of this process and of its descendants, alive or ended."""
    ticks = 0
    for pid in _family(os.getpid()):
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
        except OSError:
            continue
        fields = stat.rpartition(")")[2].split()
        ticks += sum(map(int, fields[11:15]))  # its own, then of children that it has waited for
    return ticks / os.sysconf("SC_CLK_TCK")


def _proportional_kb(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    except OSError:
        pass
    return 0


def significant(value: float, digits: int = 4) -> float:
    """Rounded to so many significant digits: a microsecond is no zero, however fast the machine."""
    return float(f"{value:.{digits}g}")


def result(measured: Measurement, size: str, **more) -> dict:
    """The object of one line; `more` are further keys, among them device and threads."""
    peak, cpu = measured.peak_mb, measured.cpu_seconds
    return {
        "seconds": significant(measured.seconds),
        "spread": round(measured.spread, 3),
        "peak_mb": peak and round(peak, 1),
        "size": size,
        **more,
        "commit": commit(),
        "cpu_seconds": cpu and significant(cpu),
        "repeats": len(measured.times),
        "load": round(os.getloadavg()[0], 2),
    }


def commit() -> str | None:
    """The commit of the checkout that holds this file, with + where files but docs/, which has the
    results, differ from it."""
    folder = Path(__file__).parent

    def git(*arguments):
        command = ["git", *arguments]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)

    try:
        code = ("--", ":/", ":(top,exclude)docs")
        changed = git("status", "--porcelain", "--untracked-files=no", *code).stdout.strip()
        return git("rev-parse", "--short=12", "HEAD").stdout.strip() + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def show(bench: str, case: str, line: dict) -> None:
    print(json.dumps({"bench": bench, "case": case, **line}), flush=True)
