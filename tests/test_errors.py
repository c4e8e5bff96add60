"""Commands end with one line and exit code 2 if the input is wrong."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from refusals import refused_command

from tubesynth.__main__ import COMMANDS, load_command
from tubesynth.runtime.errors import (
    EXIT_INPUT,
    EXIT_STOPPED,
    STOP_FILE,
    InputError,
    SharedError,
    Stopped,
    run_command,
)


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_option_is_refused_in_one_line_that_names_the_command(name, capsys):
    command = load_command(name)
    with pytest.raises(SystemExit) as end:
        run_command(lambda: command.main(["--color", "blue"]))
    assert end.value.code == EXIT_INPUT
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert f"tubesynth {name} --help" in captured.err


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        ("prepare", "--input-dir {0}/no --output-dir {0}/out", "no: no such folder"),
        ("evaluate", "--real {0}/no --output-dir {0}/out", "no: no such folder; check --real"),
        ("cache", "list --cache-dir {0}/no", "no: no such folder"),
    ],
)
def test_a_module_ends_in_one_line_with_exit_code_2(module, options, message, tmp_path):
    command = [sys.executable, "-m", f"tubesynth.{module}", *options.format(tmp_path).split()]
    job = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert job.returncode == EXIT_INPUT and job.stderr.count("\n") == 1
    assert message in job.stderr and not list(tmp_path.iterdir())


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_too_little_memory_is_an_error_of_one_line(library, capsys):
    def allocate():
        size = 2**50
        np.zeros(size, np.uint8) if library == "numpy" else torch.zeros(size, dtype=torch.uint8)

    line = refused_command(allocate, capsys)
    assert line.startswith("out of memory: lower --batch-size")
    with pytest.raises(RuntimeError, match="shape"):
        run_command(lambda: torch.zeros(2).reshape(3))  # another fault keeps its traceback


def test_a_stop_makes_the_file_that_a_batch_script_waits_for(tmp_path, monkeypatch, capsys):
    def stop():
        raise Stopped("SIGUSR1: saved at step 3")

    monkeypatch.setenv(STOP_FILE, str(tmp_path / "stopped"))
    with pytest.raises(SystemExit) as ended:
        run_command(stop)
    assert ended.value.code == EXIT_STOPPED and (tmp_path / "stopped").exists()
    assert capsys.readouterr().err == "stopped: SIGUSR1: saved at step 3\n"


@pytest.mark.parametrize("rank", ["0", "1"])
def test_an_error_that_all_ranks_raise_is_printed_by_the_first(rank, monkeypatch, capsys):
    monkeypatch.setenv("RANK", rank)
    for kind, is_printed in ((SharedError, rank == "0"), (InputError, True)):

        def fail(kind=kind):
            raise kind("out: 2 cases are left out")

        with pytest.raises(SystemExit) as ended:
            run_command(fail)
        assert ended.value.code == 2
        assert ("error: out: 2 cases" in capsys.readouterr().err) == is_printed
