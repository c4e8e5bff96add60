"""Times two ways of the same work in turns, so that a busy machine slows both alike.

Memory is what the process holds at its peak, or on a GPU what torch has allocated there; each way
is run once more for it, by itself.
"""

import statistics
from collections.abc import Callable

import torch
from parts.measure import Measurement, measure, result, significant

from tubesynth.runtime.errors import InputError


def device_of(name: str) -> torch.device:
    if name != "cpu" and (name != "cuda" or not torch.cuda.is_available()):
        raise InputError(f"--device {name}: torch finds no such device; use cpu")
    return torch.device(name)


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def finished(work: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """The same work, waited for: a GPU answers before it is done."""

    def run():
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


def in_turns(
    works: list[Callable[[], None]], repeats: int, device: torch.device
) -> list[Measurement]:
    """The Measurement of every work; each turn runs all of them once."""
    works = [finished(work, device) for work in works]
    peaks = [_peak_mb(work, device) for work in works]
    turns = [[measure(work, 1, warm_up=False) for work in works] for _ in range(repeats)]
    return [
        Measurement(
            [turn[i].times[0] for turn in turns], [turn[i].cpu_times[0] for turn in turns], peak
        )
        for i, peak in enumerate(peaks)
    ]


def _peak_mb(work: Callable[[], None], device: torch.device) -> float | None:
    work()  # one-time set-up does not count
    if device.type != "cuda":
        return measure(work, 0).peak_mb
    torch.cuda.reset_peak_memory_stats()
    work()
    return torch.cuda.max_memory_allocated() / 1e6


def result_on(device: torch.device, measured: Measurement, size: str, **more) -> dict:
    """`result`, with the device and the threads."""
    where = {"device": device_name(device), "threads": torch.get_num_threads()}
    return result(measured, size, **where, **more)


def compared(
    device: torch.device,
    ours: Measurement,
    peer_name: str,
    peer: Measurement,
    size: str,
    **more,
) -> dict:
    """The JSON object of one line; speedup is peer / ours, memory_ratio ours / peer.

    The median of the ratios of the turns varies less than the ratio of the medians.
    """
    speedups = [b / a for a, b in zip(ours.times, peer.times, strict=True)]
    return {
        **result_on(device, ours, size, **more),
        "peer": peer_name,
        "peer_seconds": significant(peer.seconds),
        "peer_peak_mb": peer.peak_mb and round(peer.peak_mb, 1),
        "speedup": significant(statistics.median(speedups)),
        "memory_ratio": peer.peak_mb and significant(ours.peak_mb / peer.peak_mb),
        "peer_cpu_seconds": peer.cpu_seconds and significant(peer.cpu_seconds),
    }
