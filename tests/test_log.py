"""The logger: dated lines on the terminal and in the run's file, and long loops that report."""

import os
import re
import subprocess
import sys

import pytest

from tubesynth.runtime import dist, log
from tubesynth.runtime.log import Progress, duration, log_file, logger, progress

DATED = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ")


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test advances: clock.seconds += 10."""

    class Clock:
        seconds = 0.0

    monkeypatch.setattr(log.time, "monotonic", lambda: Clock.seconds)
    return Clock


def test_a_line_has_the_date_and_a_warning_its_level(capsys):
    log.set_up()
    logger.info("step 1")
    logger.warning("no GPU")
    first, second = capsys.readouterr().err.splitlines()
    assert DATED.match(first) and first.endswith(" step 1")
    assert DATED.match(second) and second.endswith(" warning: no GPU")


def test_only_rank_0_writes(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "1")
    log.set_up()
    with log_file(tmp_path / "train.log"):
        logger.error("from rank 1")
    monkeypatch.undo()
    log.set_up()
    assert capsys.readouterr().err == "" and not (tmp_path / "train.log").exists()


def test_the_file_of_a_run_has_the_lines_from_before_it_and_grows_when_resumed(tmp_path):
    path = tmp_path / "train.log"
    for name in ("new", "resumed"):
        log.set_up()
        logger.info(f"{name}: head")
        with log_file(path):
            logger.info(f"{name}: step")
        logger.info("after the run")
    messages = [line[len("2026-01-01 00:00:00 ") :] for line in path.read_text().splitlines()]
    assert messages == ["new: head", "new: step", "resumed: head", "resumed: step"]


def test_the_file_of_a_run_has_the_lines_from_before_the_process_group(tmp_path):
    log.set_up()
    logger.warning("the config is a packaged one")
    dist.start("cpu")
    with log_file(tmp_path / "train.log"):
        pass
    assert "the config is a packaged one" in (tmp_path / "train.log").read_text()


def test_the_file_of_a_run_has_the_reason_of_its_end(tmp_path):
    log.set_up()
    with pytest.raises(ValueError), log_file(tmp_path / "train.log"):
        raise ValueError("the loss is not finite")
    (line,) = (tmp_path / "train.log").read_text().splitlines()
    assert line.endswith(" error: ValueError: the loss is not finite")


@pytest.mark.parametrize("seconds", [0.5, 7.0, 45.0, 100.0])
def test_a_long_loop_logs_a_line_at_least_once_a_minute(seconds, clock, capsys):
    """Every item that takes longer than a minute has a line."""
    log.set_up()
    lines_at = [0.0]
    for _ in progress(range(300), "encode", 300):
        clock.seconds += seconds
        if capsys.readouterr().err:
            lines_at.append(clock.seconds - seconds)  # it came before this item began
    gaps = [b - a for a, b in zip(lines_at, lines_at[1:], strict=False)]
    assert gaps and max(gaps) <= max(60.0, seconds)
    assert len(gaps) <= 300 * seconds / 30 + 1


def test_a_line_says_how_far_a_loop_is_and_how_long_it_still_takes(clock, capsys):
    log.set_up()
    with Progress("encode training", 8, unit="volume") as counter:
        for _ in range(3):
            clock.seconds += 25.0
            counter.update()
        line = capsys.readouterr().err.splitlines()[0]
        assert line.endswith(" encode training: 2 of 8 volumes, 25 s each, 0:02:30 left")
    assert capsys.readouterr().err.endswith(" encode training: 3 of 8 volumes in 0:01:15\n")


def test_a_short_loop_logs_nothing(capsys):
    log.set_up()
    assert list(progress(iter("abc"), "validation", 3, bar=False)) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""


def test_a_duration_has_days_and_hours():
    assert duration(754.4) == "0:12:34" and duration(176_400) == "2 days, 1:00:00"


def test_a_command_sets_huge_pages_and_the_import_sets_nothing():
    script = (
        "import os; before = dict(os.environ); import tubesynth\n"
        "assert dict(os.environ) == before\n"
        "from tubesynth.runtime.errors import run_command\n"
        "run_command(lambda: print(os.environ['THP_MEM_ALLOC_ENABLE']))"
    )
    plain = {name: v for name, v in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    result = subprocess.run([sys.executable, "-c", script], env=plain, capture_output=True)
    assert result.stdout.strip() == b"1", result.stderr
