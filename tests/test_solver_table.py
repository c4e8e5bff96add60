"""tests/bench/solvers.py: its table and its picture have the values of the samples."""

import json
import math
import re
import sys
from xml.etree import ElementTree

import pytest
import torch
from conftest import REPOSITORY

from tubesynth.config.schema import SamplingConfig
from tubesynth.pipeline import Pipeline, SampleOptions
from tubesynth.runtime.seeding import generator
from tubesynth.volume.cases import find_cases
from tubesynth.volume.files import read_labels

WAYS = ["euler_5", "euler_20", "midpoint_10", "dopri5_0.001", "heun_5_shift2"]


@pytest.fixture(scope="module")
def bench():
    folder = str(REPOSITORY / "tests" / "bench")
    sys.path.insert(0, folder)
    import solver_picture
    import solvers

    yield solvers, solver_picture
    sys.path.remove(folder)


@pytest.mark.slow
def test_distances_are_those_of_the_pipelines_own_samples(
    bench, stage_2, workplace, tmp_path, capsys
):
    solvers, _ = bench
    data = workplace / "data" / "validation"
    options = ["--model", stage_2, "--data", data, "--output-dir", tmp_path, "--cases", "1"]
    options += ["--reference-steps", "40", "--picture", tmp_path / "p.svg", "--ways", *WAYS]
    solvers.main([str(option) for option in options])
    table = capsys.readouterr().out
    (path,) = tmp_path.glob("*_seed0_midpoint_40/*.json")
    rows = json.loads(path.read_text(encoding="utf-8"))
    assert set(rows) == {*WAYS, *solvers.YARDSTICKS}
    assert [rows[name]["evaluations"] for name in WAYS[:3]] == [5, 20, 20]
    assert rows["euler_5"]["latent_rms"] > rows["euler_20"]["latent_rms"]
    assert rows["euler_20"]["latent_rms"] > rows["midpoint_10"]["latent_rms"] > 0
    assert rows["reference"]["ct_rms_hu"] == 0

    pipeline, labels = Pipeline.load(stage_2), read_labels(find_cases(data / "labels")[path.stem])
    reference, sample = (
        pipeline.sample(
            labels,
            generator(torch.device("cpu"), 0, "sample", path.stem, 0),
            SampleOptions(sampling=way),
        )
        for way in (SamplingConfig("midpoint", steps=40), SamplingConfig("euler", steps=5))
    )
    expected = (reference.latents - sample.latents).square().mean().sqrt().item()
    assert rows["euler_5"]["latent_rms"] == pytest.approx(expected, rel=1e-4)
    assert f"| euler 5 | 5.0 | {expected:.4f} |" in table

    stamp = path.stat().st_mtime_ns
    solvers.main([str(option) for option in options])  # nothing is sampled again
    assert path.stat().st_mtime_ns == stamp and capsys.readouterr().out == table


def test_a_power_law_is_a_straight_line_in_the_picture(bench):
    _, picture = bench
    lines = {"first": [(n, 8 / n) for n in (2, 4, 8, 16)], "second": [(4, 1.0), (8, 0.0)]}
    root = ElementTree.fromstring(picture.picture(lines, "evaluations", "distance"))
    first, second = root.iter("{http://www.w3.org/2000/svg}polyline")
    points = [tuple(map(float, p.split(","))) for p in first.get("points").split()]
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in zip(points, points[1:], strict=False)]
    assert slopes[0] > 0 and max(slopes) - min(slopes) < 0.01  # y grows down the page
    assert len(second.get("points").split()) == 1  # zero has no logarithm
    assert re.fullmatch(r"[\d.]+,[\d.]+", second.get("points"))


def test_round_numbers_lie_in_the_range(bench):
    _, picture = bench
    assert picture.round_numbers(3, 120) == [5, 10, 20, 50, 100]
    assert picture.round_numbers(0.002, 30) == pytest.approx([0.01, 0.1, 1, 10])
    assert math.isclose(picture.round_numbers(0.4, 0.6)[0], 0.5)
