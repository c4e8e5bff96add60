"""Processes started by srun: what the batch script must have set."""

import pytest

from tubesynth.errors import InputError
from tubesynth.runtime import dist

SLURM = {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_STEP_ID": "0"}


@pytest.mark.parametrize("missing", ["MASTER_ADDR", "MASTER_PORT"])
def test_tasks_that_cannot_find_each_other_are_refused_before_they_wait(monkeypatch, missing):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    there = SLURM | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in there.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(missing)
    with pytest.raises(InputError, match=f"^{missing} is not set"):
        dist.start()
