"""Training steps of every stage and a synthesis at published sizes, on a GPU that is not there.

No tensor is on the wrong device or of the wrong type, no random number is one of another device's
generator, the host waits where it must, and doctor counts the same memory.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fake_cuda import STEPS, SYNTHESIS, TILED

from tubesynth.config.loading import load_config
from tubesynth.doctor.training_memory import PROGRAM, WORKSPACES, estimate

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    """fake_cuda.cpp, compiled."""
    if torch.version.cuda or torch.version.hip:
        pytest.skip("this build of torch has GPUs of its own, which tests/gpu tests")
    if not shutil.which("g++"):
        pytest.skip("the fake GPU needs g++, which is not installed")
    at, library = Path(torch.__file__).parent, tmp_path_factory.mktemp("fake_cuda") / "guard.so"
    command = ["g++", "-std=c++20", "-O0", "-shared", "-fPIC", f"-I{at}/include"]
    command += [str(TESTS / "fake_cuda.cpp"), "-o", str(library), f"-L{at}/lib", "-lc10"]
    subprocess.run([*command, "-ltorch_cpu", f"-Wl,-rpath,{at}/lib"], check=True)
    return library


@pytest.fixture(scope="module")
def results(library) -> dict[tuple, dict]:
    return lines(library)


def lines(library: Path, *options: str) -> dict[tuple, dict]:
    """The lines of fake_cuda.py by case, in a process of its own."""
    command = [sys.executable, str(TESTS / "fake_cuda.py"), str(library), *options]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rows = [json.loads(line) for line in output.splitlines()]
    return {tuple(row.pop("case")): row for row in rows}


@pytest.mark.parametrize("case", STEPS)
def test_the_host_waits_once_in_a_step(case, results):
    row = results[case]
    assert "error" not in row, row["error"]
    # The norms are read together. The first step of a codebook also reads whether it is
    # initialized and, unless it is the published one, how long codes have been unused.
    scalars = {"stage_1": 5, "as_published/stage_1": 3}.get(case[0].split("_3d")[0], 1)
    assert row["waits"] == {"_local_scalar_dense": scalars}


@pytest.mark.parametrize("case", [STEPS[0], STEPS[1], STEPS[3]])
def test_doctor_counts_the_same_memory(case, results):
    name, precision, setting = case
    config = load_config(name, [f"train.precision={precision}", setting])
    counted = estimate(config).training - PROGRAM["cuda"] - WORKSPACES
    assert results[case]["peak"] == pytest.approx(counted, rel=0.03)


def test_a_synthesis_waits_for_its_inputs_alone(results):
    """Noise, spacing, guidance terms; a time of the solver, and whether the latents and each of
    two images are finite. Weights are there already.
    """
    row = results[SYNTHESIS]
    assert "error" not in row, row["error"]
    assert sum(row["waits"].values()) <= 6, row["waits"]


@pytest.mark.slow
def test_a_synthesis_of_512x512x256_voxels_fits_12_gb_at_once_and_6_gb_in_tiles(library):
    """In 32 bits; the features of conditions are cached as far as the GPU has room for them."""
    rows = lines(library, "tiles")
    assert not [row["error"] for row in rows.values() if "error" in row]
    others = PROGRAM["cuda"] + WORKSPACES
    whole, tiled, small = (rows[case]["evaluation"] + others for case in TILED)
    assert 10.5e9 < whole < 11.5e9 and 9e9 < tiled < 10e9 and 3.5e9 < small < 4.5e9
    assert max(row["decoding"] + others for row in rows.values()) < 6e9
