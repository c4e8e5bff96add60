"""A SLURM of two one-core nodes on this machine, and a training job on it.

Needs root and Debian's packages slurm-wlm and munge. As a program it requeues one job many times:

    python tests/slurm_cluster.py --output-dir requeues --requeues 20 [--launcher torchrun]
"""

import argparse
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
NODES = ("n1", "n2")
CONFIG = """
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
SlurmUser=root
SlurmdUser=root
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
JobCompType=jobcomp/none
AccountingStorageType=accounting_storage/none
JobRequeue=1
ReturnToService=2
KillWait=30
SlurmctldPort={port}
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={port_n1} CPUs=1 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={port_n2} CPUs=1 State=UNKNOWN
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


def installed() -> bool:
    programs = ("slurmctld", "slurmd", "sbatch", "munged")
    return os.geteuid() == 0 and all(shutil.which(name) for name in programs)


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:g} s: {what}")
        time.sleep(0.2)


def free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class Cluster:
    """Commands of the cluster whose configuration is in this folder."""

    def __init__(self, folder: Path):
        self.folder, host = folder, socket.gethostname().split(".")[0]
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        port, port_n1, port_n2 = free_ports(3)
        (folder / "state").mkdir(parents=True)
        text = CONFIG.format(host=host, folder=folder, port=port, port_n1=port_n1, port_n2=port_n2)
        (folder / "slurm.conf").write_text(text)

    def command(self, *arguments, check=True, cwd: Path | None = None, **environment: str) -> str:
        line, everything = [str(item) for item in arguments], self.environment | environment
        options = dict(capture_output=True, text=True, check=False)
        done = subprocess.run(line, env=everything, cwd=cwd, **options)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(line)}: {done.stderr}")
        return done.stdout.strip()

    def start(self) -> None:
        if subprocess.run(["munge", "-n"], capture_output=True, check=False).returncode:
            for command in ("install -d -o munge -g munge /run/munge", "runuser -u munge munged"):
                subprocess.run(command.split(), check=True)
        self.command("slurmctld", "-c")
        for node in NODES:
            self.start_node(node)

    def start_node(self, node: str) -> None:
        self.command("slurmd", "-N", node)
        wait_until(lambda: "idle" in self.state(node), f"{node} is idle", 60)

    def state(self, node: str) -> str:
        return self.command("sinfo", "-h", "-n", node, "-o", "%T")

    def kill(self, daemon: str) -> None:
        """SIGKILL to a daemon (slurmctld, or slurmd.NODE)."""
        os.kill(int((self.folder / f"{daemon}.pid").read_text()), signal.SIGKILL)

    def stop(self) -> None:
        self.command("scancel", "--user=root", check=False)
        for path in self.folder.glob("*.pid"):
            try:
                self.kill(path.stem)
            except ProcessLookupError:
                continue  # a test has killed it


class ClusterError(Exception):
    """The daemons cannot be started on this machine."""


@contextmanager
def two_nodes(folder: Path) -> Iterator[Cluster]:
    cluster = Cluster(folder)
    try:
        try:
            cluster.start()
        except (OSError, RuntimeError, TimeoutError, subprocess.CalledProcessError) as error:
            raise ClusterError(str(error)) from error
        yield cluster
    finally:
        cluster.stop()


class TrainingJob:
    """launch/slurm.sbatch on both nodes with this config, from the folder of the run."""

    def __init__(self, cluster: Cluster, run: Path, config: Path, launcher: str, *options: str):
        self.cluster, self.run = cluster, run
        run.mkdir(parents=True)
        script = REPOSITORY / "launch" / "slurm.sbatch"
        line = ["sbatch", "--parsable", "--nodes=2", script, config, "--run-dir", run, *options]
        line += ["--logger", "none", "--device", "cpu"]
        environment = {"LAUNCHER": launcher, "PYTHON": sys.executable}
        self.number = cluster.command(*line, cwd=run, **environment)

    def _field(self, name: str) -> str:
        text = self.cluster.command("scontrol", "show", "job", self.number)
        found = re.search(rf"\b{name}=(\S+)", text)
        assert found, text
        return found[1]

    def state(self) -> str:
        return self._field("JobState")

    def restarts(self) -> int:
        return int(self._field("Restarts"))

    def steps(self) -> int:
        path = self.run / "metrics.jsonl"
        return len(path.read_text().splitlines()) if path.is_file() else 0

    def wait_for_steps(self) -> None:
        """Until the running job has written more lines of metrics than there are now."""
        before = max(self.steps(), 1)
        wait_until(lambda: self.steps() > before and self.state() == "RUNNING", "a training step")

    def signal(self, name: str) -> None:
        self.cluster.command("scancel", f"--signal={name}", self.number)

    def wait_for_restart(self, number: int) -> None:
        """Until it is in the queue for the number-th time, which SLURM would let it leave later."""
        wait_until(lambda: self.restarts() >= number, f"restart {number}", 120)
        wait_until(lambda: self.state() == "PENDING", "the requeued job is in the queue")
        time.sleep(3)  # SLURM kills a job that starts while the last life's credential is revoked

        def started() -> bool:
            now = ("scontrol", "update", f"JobId={self.number}", "StartTime=now")
            self.cluster.command(*now, check=False)  # refused once it has started
            return self.state() == "RUNNING"

        wait_until(started, "the requeued job is started")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--requeues", type=int, default=20)
    parser.add_argument("--launcher", choices=("srun", "torchrun"), default="srun")
    args = parser.parse_args()
    folder = args.output_dir.resolve()
    phantom = f"phantom --output-dir {folder}/data --cases 6 --resolution 32 32 24"
    line = [sys.executable, "-m", "tubesynth", *phantom.split(), *"--spacing 5.5 5.5 5.5".split()]
    subprocess.run(line, check=True)
    options = [f"data.root={folder}/data", f"data.cache_dir={folder}/cache", "data.batch_size=1"]
    options += ["data.resolution=[32,32,24]", "data.spacing=[5.5,5.5,5.5]", "data.crop=[16,16,16]"]
    options += ["data.num_workers=0", "train.log_every=1", "train.epochs=100000"]
    with two_nodes(folder / "slurm") as cluster:
        config = REPOSITORY / "configs" / "demo" / "stage_1.yml"
        job = TrainingJob(cluster, folder / "run", config, args.launcher, *options)
        for number in range(1, args.requeues + 1):
            job.wait_for_steps()
            start = time.monotonic()
            job.signal("USR1")
            job.wait_for_restart(number)
            print(f"requeue {number}: {time.monotonic() - start:.0f} s, step {job.steps()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
