"""Free memory under the limits of containers and batch jobs, read from copies of kernel files."""

import pytest
import torch

from tubesynth.runtime import memory
from tubesynth.runtime.memory import control_groups, free_bytes, gpu_mb, total_bytes

GIB = 2**30


def group(folder, limit, used, cached, version=2):
    folder.mkdir(parents=True, exist_ok=True)
    names = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        2: ("memory.max", "memory.current", "inactive_file"),
    }[version]
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon {used - cached}\n{names[2]} {cached}\n")


def processes(tmp_path, text):
    path = tmp_path / "cgroup"
    path.write_text(text)
    return path


def test_cached_files_do_not_count_as_used(tmp_path):
    group(tmp_path / "fs", 16 * GIB, 15 * GIB, 12 * GIB)
    groups = processes(tmp_path, "0::/\n")
    assert control_groups(groups, tmp_path / "fs") == [(16 * GIB, 13 * GIB)]


@pytest.mark.parametrize("version", [1, 2])
def test_the_limit_of_a_batch_job_lies_above_the_group_of_its_step(tmp_path, version):
    top = tmp_path / "fs" / ("memory" if version == 1 else "")
    group(top / "slurm" / "job_7", 32 * GIB, 8 * GIB, 2 * GIB, version)
    unlimited = "max" if version == 2 else 2**63 - 4096
    group(top / "slurm" / "job_7" / "step_0", unlimited, 8 * GIB, 2 * GIB, version)
    line = "4:cpu,memory:/slurm/job_7/step_0\n" if version == 1 else "0::/slurm/job_7/step_0\n"
    groups = processes(tmp_path, "9:devices:/other\n" + line)
    assert min(control_groups(groups, tmp_path / "fs")) == (32 * GIB, 26 * GIB)


def test_a_group_that_is_not_mounted_is_replaced_by_its_mounted_parent(tmp_path):
    group(tmp_path / "fs" / "memory", 8 * GIB, GIB, 0, version=1)
    groups = processes(tmp_path, "4:memory:/docker/0123\n")
    assert control_groups(groups, tmp_path / "fs") == [(8 * GIB, 7 * GIB)]


def test_without_control_groups_there_is_no_limit(tmp_path):
    assert control_groups(tmp_path / "none", tmp_path / "fs") == []
    assert free_bytes(torch.device("cpu")) > 0


def test_the_memory_of_a_job_is_that_of_its_group_or_of_slurm(monkeypatch):
    monkeypatch.setattr(memory, "control_groups", lambda: [(2**63, 1), (3 * GIB, GIB)])
    assert total_bytes() == 3 * GIB
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "1024")  # MB
    assert total_bytes() == GIB
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "0")
    assert total_bytes() == 3 * GIB


def test_the_memory_in_use_is_that_of_all_programs_on_the_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3 * GIB, 8 * GIB))
    assert gpu_mb(torch.device("cuda")) == {"gpu_used_mb": 5 * 1024, "gpu_total_mb": 8 * 1024}
    assert gpu_mb(torch.device("cpu")) == {}
