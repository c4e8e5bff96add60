"""Fixtures that tests share: small phantoms, configs, trained checkpoints, real CT."""

import multiprocessing
import os
import shutil
from pathlib import Path

# Before NumPy and torch, and for the processes that tests start: the operations are small, threads
# cost more than they give, and the tests themselves are shared out among the cores.
os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"
# Runs are equal bit for bit on a CPU only; set the variable to run the tests on a GPU all the same.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
# They pay from the second built kernel on, and the tests build one.
os.environ["TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS"] = "0"

import pytest
import torch
from filelock import FileLock

from tubesynth.runtime.log import early_lines, logger

torch.set_num_threads(1)
# Processes that tests start by a fork server: each would import for seconds what it has already.
PRELOADED = ["tubesynth.train", "tubesynth.evaluate", "torch._dynamo"]
multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)

REPOSITORY = Path(__file__).parent.parent
REAL_CT = Path(os.environ.get("TUBESYNTH_REAL_CT", REPOSITORY.parent / "shared" / "real"))

DATA = """
seed: 3
data:
  root: {data}
  cache_dir: {cache}
  resolution: [32, 32, 24]
  spacing: [5.5, 5.5, 5.5]
  num_workers: 0
"""
AUTOENCODER = """
autoencoder:
  channels: [8, 8]
  residual_channels: [8, 8]
  num_residual_layers: 1
  embedding_dim: 4
  codebook_size: 32
  codebook_decay: 0.9
discriminator: {{channels: 4, num_layers: 1}}
"""
UNET = """
latents: {{autoencoder: {autoencoder}}}
unet:
  channels: [16, 16]
  num_res_blocks: 1
  attention_levels: [1]
  head_channels: 8
  label_channels: [8, 8, 8]
  spade_hidden: 8
sampling: {{solver: heun, steps: 2}}
"""

STAGE_1 = f"""
stage: 1
{DATA}
  crop: [16, 16, 16]
  augment: {{{{flip: 0.5, intensity: 0.5}}}}
{AUTOENCODER}
losses: {{{{adversarial: 0.0005}}}}
train:
  epochs: 2
  learning_rate: 5e-4
  warmup_steps: 2
  log_every: 1
  panel_every: 2
  save_every: 1
"""

STAGE_2 = f"""
stage: 2
{DATA}
{UNET}
flow: {{{{label_dropout: 0.1}}}}
train:
  epochs: 2
  learning_rate: 1e-3
  ema_half_life: 10
  log_every: 1
  panel_every: 2
  save_every: 1
"""


@pytest.fixture(autouse=True)
def logger_of_one_test():
    """The lines, handlers and level of a test reach no other test of its process."""
    handlers, level, propagate = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.propagate = handlers, propagate
    logger.setLevel(level)
    early_lines.buffer.clear()


@pytest.fixture(scope="session")
def real_ct() -> Path:
    """The folder of real CT volumes (images/, labels/); tests that need it skip without it."""
    if not (REAL_CT / "images").is_dir():
        pytest.skip(f"no real CT in {REAL_CT} (set TUBESYNTH_REAL_CT)")
    return REAL_CT


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory) -> Path:
    """Four training and two validation phantoms; all processes of a test run share the folder."""
    from tubesynth.phantom.__main__ import main

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    command = "--cases 6 --seed 7 --resolution 32 32 24 --spacing 5.5 5.5 5.5"
    command += " --validation-fraction 0.34 --output-dir"
    with FileLock(folder / "phantoms.lock"):  # the second process finds all cases written
        main([*command.split(), str(folder / "phantoms")])
    return folder / "phantoms"


@pytest.fixture(scope="session")
def workplace(tmp_path_factory, phantoms) -> Path:
    """A folder with data/ (the phantoms), and s1.yml and s2.yml on it."""
    folder = tmp_path_factory.mktemp("workplace")
    data = folder / "data"
    shutil.copytree(phantoms, data)
    last = folder / "s1" / "checkpoints" / "last.ckpt"
    paths = dict(data=data, cache=folder / "cache", autoencoder=last)
    (folder / "s1.yml").write_text(STAGE_1.format(**paths))
    (folder / "s2.yml").write_text(STAGE_2.format(**paths))
    return folder


@pytest.fixture(scope="session")
def stage_1(workplace) -> Path:
    """last.ckpt of a stage-1 run of eight steps."""
    from tubesynth.train import main

    main(["--config", str(workplace / "s1.yml"), "--run-dir", str(workplace / "s1")])
    return workplace / "s1" / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="session")
def stage_2(workplace, stage_1) -> Path:
    """last.ckpt of a stage-2 run of eight steps."""
    from tubesynth.train import main

    main(["--config", str(workplace / "s2.yml"), "--run-dir", str(workplace / "s2")])
    return workplace / "s2" / "checkpoints" / "last.ckpt"
