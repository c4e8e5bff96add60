"""Worker processes: signals to all processes of a job, killed workers, and orphans."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tubesynth.data.pool import PROBED, each, each_in_threads
from tubesynth.runtime import log
from tubesynth.runtime.errors import EXIT_STOPPED, InputError
from tubesynth.runtime.log import collected_lines, logger, warn_once

PROGRAM = """
import sys, time
from pathlib import Path
from tubesynth.data.pool import each
from tubesynth.runtime.errors import run_command
from tubesynth.runtime.stop_signal import interruptible
sys.path.insert(0, {tests!r})
from test_pool import slow_case

def main():
    jobs = [(Path({folder!r}), index, {seconds}) for index in range(8)]
    interruptible(lambda: each(slow_case, jobs, {workers}, "cases"), "finished cases are kept")

run_command(main)
"""


def slow_case(folder: Path, index: int, seconds: float) -> None:
    (folder / f"{index}.begun").write_text(str(os.getpid()))
    time.sleep(seconds)
    (folder / f"{index}.finished").touch()


def started(folder: Path, workers: int, seconds: float) -> subprocess.Popen:
    """A program with eight slow cases, in a process group of its own, once they have begun."""
    program = PROGRAM.format(
        tests=str(Path(__file__).parent), folder=str(folder), workers=workers, seconds=seconds
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_until(lambda: len(list(folder.glob("*.begun"))) >= workers)
    return process


@pytest.mark.parametrize("waits", [True, False])
def test_short_work_is_done_by_threads_where_it_waits_and_by_this_one_where_it_computes(
    waits, monkeypatch
):
    monkeypatch.setattr(time, "thread_time", (lambda: 0.0) if waits else time.perf_counter)
    names = []

    def work(item: int) -> int:
        names.append(threading.current_thread().name)
        time.sleep(0.001)
        return item * item

    assert each_in_threads(work, range(200)) == [item * item for item in range(200)]
    assert (len(set(names[PROBED:])) > 1) == waits


def logging_case(index: int) -> list[str]:
    """Logs a line, a warning that is the same for all cases, and collects one of its own."""
    with collected_lines() as lines:
        warn_once(f"of the file of case {index}")
    logger.info(f"case {index}")
    warn_once(f"case {index} has the values 3 and 4", key="values")
    return [line.getMessage() for line in lines]


@pytest.mark.parametrize("rank", ["0", "1"])
def test_workers_log_what_one_process_logs(rank, capsys, monkeypatch):
    monkeypatch.setenv("RANK", rank)
    outputs = []
    for workers in (1, 2):
        log.set_up()
        collected = each(logging_case, [(index,) for index in range(4)], workers, "cases")
        assert collected == [[f"of the file of case {index}"] for index in range(4)]
        lines = [line[20:] for line in capsys.readouterr().err.splitlines() if line[:2] == "20"]
        outputs.append(sorted(line for line in lines if not line.startswith("warning")))
        warnings = [line for line in lines if line.startswith("warning")]
        assert len(warnings) == (rank == "0")
    assert outputs[0] == outputs[1] == [f"case {i}" for i in range(4) if rank == "0"]


def wait_until(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"  # a zombie that nobody has waited for


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_to_all_processes_stops_with_75_and_keeps_running_cases(number, tmp_path):
    """As SLURM sends it: to workers and the fork server too. The two cases end within the grace."""
    process = started(tmp_path, workers=2, seconds=2.0)
    os.killpg(process.pid, number)
    _, message = process.communicate(timeout=20)
    assert process.returncode == EXIT_STOPPED, message
    assert message == f"stopped: {signal.Signals(number).name}: finished cases are kept\n"
    assert len(list(tmp_path.glob("*.finished"))) >= 2


@pytest.mark.parametrize("workers", [1, 2])
def test_a_signal_ends_cases_of_minutes_within_seconds(workers, tmp_path):
    process = started(tmp_path, workers, seconds=600.0)
    start = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, message = process.communicate(timeout=60)
    assert time.monotonic() - start < 20  # of these, seconds on a busy machine
    assert process.returncode == EXIT_STOPPED, message
    pids = [int(path.read_text()) for path in tmp_path.glob("*.begun")]
    wait_until(lambda: not any(map(is_running, pids)))


def test_workers_of_a_killed_parent_end(tmp_path):
    process = started(tmp_path, workers=2, seconds=600.0)
    process.kill()
    process.communicate()
    pids = [int(path.read_text()) for path in tmp_path.glob("*.begun")]
    wait_until(lambda: not any(map(is_running, pids)))


STARTING = """
from multiprocessing import forkserver
connect = forkserver._forkserver.connect_to_new_process

def connect_and_signal(descriptors):
    connection = connect(descriptors)
    os.kill(os.getpid(), signal.SIGTERM)
    return connection

forkserver._forkserver.connect_to_new_process = connect_and_signal
forkserver.connect_to_new_process = connect_and_signal
"""


def test_a_signal_while_workers_start_leaves_no_traceback(tmp_path):
    program = PROGRAM.format(
        tests=str(Path(__file__).parent), folder=str(tmp_path), workers=2, seconds=0.1
    )
    program = program.replace("import sys, time", f"import os, signal, sys, time\n{STARTING}")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == EXIT_STOPPED
    assert done.stderr == "stopped: SIGTERM: finished cases are kept\n"


def die(number: int) -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
    os.kill(os.getpid(), number)
    time.sleep(60)


@pytest.mark.parametrize(
    ("number", "message"),
    [(signal.SIGKILL, "killed, by hand or by the system for lack of memory"),
     (signal.SIGSEGV, "ended by SIGSEGV")],
)  # fmt: skip
def test_a_dead_worker_is_named_by_its_signal(number, message):
    with pytest.raises(InputError, match=message):
        each(die, [(number,), (number,)], 2, "cases")
