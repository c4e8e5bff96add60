"""The counted memory of a training step agrees with that of a GPU and of a CPU."""

import json

import pytest
import torch
from bench import in_fresh_process
from conftest import REPOSITORY
from networks import with_autograd_norms
from parts.measure import PeakMemory

from tubesynth.config.loading import load_config
from tubesynth.doctor.training_memory import PROGRAM, estimate
from tubesynth.models import unet, vqvae
from tubesynth.training.random_step import random_step


def measured_on_a_gpu() -> list[dict]:
    """The steps of docs/gpu.jsonl."""
    lines = (REPOSITORY / "docs" / "gpu.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row.get("bench") == "step"]


LINES = (1, 6, 9, 10, 13)  # every stage, with and without checkpointing, fp32 and bf16


@pytest.mark.parametrize("line", LINES)
def test_the_counts_are_those_of_a_gpu(line, monkeypatch):
    with_autograd_norms(monkeypatch)  # as when these were measured
    for module in (unet, vqvae):
        monkeypatch.setattr(module, "without_autocast", lambda layer, x: layer(x))
    row = measured_on_a_gpu()[line]
    counted = estimate(load_config(REPOSITORY / row["config"], row["settings"]))
    peak_mb = (counted.training - PROGRAM["cuda"]) / 1e6  # torch does not count the context
    assert row["device"] == "NVIDIA H200"
    assert peak_mb == pytest.approx(row["peak_mb"], rel=0.1)
    assert counted.flops == pytest.approx(row["flops"], rel=0.01)


SIDES = (48, 64, 80)


def peaks_mb_on_the_cpu() -> list[float]:
    """The memory of this process in a step at each size."""
    torch.set_num_threads(1)
    peaks = []
    for side in SIDES:
        step, _ = random_step(of_side(side), torch.device("cpu"))
        with PeakMemory() as memory:
            step()
        peaks.append(memory.peak_mb)
    return peaks


def of_side(side: int):
    return load_config("segment_vessels", ["data.batch_size=1", f"data.crop={[side] * 3}"])


def test_the_estimate_is_within_a_fifth_of_the_peak_on_a_cpu():
    peaks = in_fresh_process(peaks_mb_on_the_cpu)
    if None in peaks:
        pytest.skip("no /proc/self/smaps_rollup")
    estimates = [estimate(of_side(side), device_type="cpu").training / 1e6 for side in SIDES]
    assert estimates == pytest.approx(peaks, rel=0.2)
