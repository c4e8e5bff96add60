"""launch/slurm.sbatch on two nodes: a requeued job resumes and ends as if undisturbed."""

import subprocess
import sys
from pathlib import Path

import pytest
from slurm_cluster import Cluster, ClusterError, TrainingJob, installed, two_nodes, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not installed(), reason="needs root and the packages slurm-wlm and munge"),
]
OPTIONS = [
    "data.batch_size=1",
    "train.epochs=40",
    "train.validate_every=20",
    "train.panel_every=40",
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    try:
        with two_nodes(tmp_path_factory.mktemp("slurm")) as cluster:
            yield cluster
    except ClusterError as error:
        pytest.skip(f"SLURM does not start on this machine: {error}")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, workplace) -> list[str]:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    line = [
        sys.executable,
        "-m",
        "tubesynth.train",
        "--config",
        str(workplace / "s1.yml"),
        *OPTIONS,
    ]
    line += ["--run-dir", str(run), "--gpus", "2", "--device", "cpu", "--logger", "none"]
    subprocess.run(line, check=True, capture_output=True)
    return metrics(run)


def metrics(run: Path) -> list[str]:
    return (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()


def time_limit(cluster: Cluster, job: TrainingJob) -> None:
    """The signal that #SBATCH --signal asks for."""
    job.signal("USR1")


def preemption(cluster: Cluster, job: TrainingJob) -> None:
    """SIGTERM, and SIGKILL after KillWait."""
    cluster.command("scontrol", "requeue", job.number)


def node_failure(cluster: Cluster, job: TrainingJob) -> None:
    cluster.kill("slurmd.n2")
    cluster.command("scontrol", "update", "NodeName=n2", "State=DOWN", "Reason=test")
    wait_until(lambda: job.state() != "RUNNING", "the job has left the node")
    cluster.start_node("n2")


@pytest.mark.parametrize("launcher", ["srun", "torchrun"])
def test_a_requeued_job_ends_as_if_undisturbed(launcher, cluster, undisturbed, workplace, tmp_path):
    job = TrainingJob(cluster, tmp_path / "run", workplace / "s1.yml", launcher, *OPTIONS)
    for number, event in enumerate([time_limit, preemption, node_failure], start=1):
        job.wait_for_steps()
        event(cluster, job)
        job.wait_for_restart(number)
    wait_until(lambda: job.state() == "COMPLETED", f"job {job.number} is completed")
    assert metrics(tmp_path / "run") == undisturbed
