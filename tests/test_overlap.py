"""Reading and writing overlap with the device's work; results, order and errors are as in turn."""

import json
import re
import threading
from logging.handlers import MemoryHandler
from pathlib import Path

import numpy as np
import pytest
from ranks import on_two_ranks
from refusals import refusal

from tubesynth import reconstruct
from tubesynth.inference import overlap, run_jobs
from tubesynth.inference.overlap import THREADS, overlapped
from tubesynth.inference.reconstruction import Codec
from tubesynth.runtime.errors import InputError, run_command
from tubesynth.runtime.log import logger
from tubesynth.volume.files import write_volume
from tubesynth.volume.grid import Volume

STAGE_1 = Path(__file__).parent / "fixtures" / "0.1.0" / "stage_1.ckpt"
LONGEST_S = 60  # a wait that only a failure reaches


class Recorder:
    """Steps on numbers that record what has begun and ended, with errors of some batches."""

    def __init__(self, fail: dict[tuple[str, int], Exception] | None = None):
        self.events: list[tuple[str, int]] = []
        self.changed, self.fail = threading.Condition(), fail or {}

    def record(self, step: str, batch: int) -> None:
        with self.changed:
            self.events.append((step, batch))
            self.changed.notify_all()
        if (step, batch) in self.fail:
            raise self.fail[step, batch]

    def wait_for(self, step: str, batch: int) -> None:
        with self.changed:
            happened = self.changed.wait_for(lambda: (step, batch) in self.events, LONGEST_S)
        assert happened, f"{step} {batch} has not begun"

    def run(self, count: int, compute=lambda batch: None) -> None:
        def computed(batch: int, inputs: int) -> int:
            self.record("compute", batch)
            compute(batch)
            return 10 * inputs

        def read(batch: int) -> int:
            self.record("read", batch)
            return batch + 1

        def write(batch: int, results: int) -> int:
            self.record("write", batch)
            return results

        def report(batch: int, written: int) -> None:
            assert written == 10 * (batch + 1)
            self.record("report", batch)

        overlapped(range(count), read, computed, write, report)

    def of(self, step: str) -> list[int]:
        return [batch for name, batch in self.events if name == step]


def test_the_next_batch_is_read_and_the_last_one_written_while_the_device_computes():
    """The device's step waits until both have begun, which in turn they never would."""
    recorder = Recorder()

    def compute(batch: int) -> None:
        if batch < 4:
            recorder.wait_for("read", batch + 1)
        if batch > 0:
            recorder.wait_for("write", batch - 1)

    recorder.run(5, compute)
    assert recorder.of("compute") == recorder.of("report") == [0, 1, 2, 3, 4]
    assert sorted(recorder.of("read")) == sorted(recorder.of("write")) == [0, 1, 2, 3, 4]


def test_no_batch_is_read_while_two_are_ahead_or_computed_while_two_are_written():
    recorder = Recorder()
    recorder.run(12)
    for position, (step, batch) in enumerate(recorder.events):
        before = recorder.events[:position]
        if step == "read":
            assert batch <= sum(name == "compute" for name, _ in before) + THREADS
        if step == "write":
            assert batch <= sum(name == "report" for name, _ in before) + THREADS


@pytest.mark.parametrize("step", ["read", "compute", "write"])
def test_the_error_of_a_batch_is_raised_when_those_before_it_are_written(step):
    recorder = Recorder({(step, 3): InputError(f"case 3: {step}")})
    with pytest.raises(InputError, match=f"case 3: {step}"):
        recorder.run(8)
    assert recorder.of("report") == [0, 1, 2]
    assert not set(recorder.of("write")) & ({3, 4, 5, 6, 7} if step != "write" else {7})


def test_of_two_errors_that_of_the_first_batch_is_raised():
    recorder = Recorder({("write", 2): InputError("case 2"), ("read", 3): InputError("case 3")})
    with pytest.raises(InputError, match="case 2"):
        recorder.run(8)
    assert recorder.of("report") == [0, 1]


@pytest.fixture
def cts(tmp_path) -> Path:
    """Four CTs of noise."""
    random = np.random.default_rng(0)
    for case in range(1, 5):
        hu = random.integers(-900, 900, (16, 16, 12), np.int16)
        affine = np.diag([5.5, 5.5, 5.5, 1])
        write_volume(tmp_path / "cts" / f"{case}.img.nii.gz", Volume(hu, affine), "int16")
    return tmp_path / "cts"


def command(cts: Path, out: Path) -> list[str]:
    return ["--input-dir", str(cts), "--output-dir", str(out), "--model", str(STAGE_1)]


def finished(out: Path) -> set[str]:
    """The cases with a volume and a sidecar, which is all that there is."""
    files = {path.name for path in out.iterdir()}
    cases = {name.removesuffix(".json") for name in files if name.endswith(".json")}
    assert files == {f"{case}{end}" for case in cases for end in (".json", ".img.nii.gz")}
    for case in cases:
        assert json.loads((out / f"{case}.json").read_text())["seconds"] > 0
    return cases


def test_a_broken_file_is_named_and_all_other_cases_are_finished(cts, tmp_path, capsys):
    (cts / "3.img.nii.gz").write_bytes(b"no gzip")
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: reconstruct.main(command(cts, tmp_path / "out")))
    error = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 2 and "3.img.nii.gz" in error and error.endswith("are done")
    assert finished(tmp_path / "out") == {"1", "2", "4"}


def test_of_two_broken_files_each_has_a_line_and_the_same_command_makes_them(cts, tmp_path, capsys):
    good = (cts / "1.img.nii.gz").read_bytes()
    for case in (1, 3):
        (cts / f"{case}.img.nii.gz").write_bytes(b"no gzip")
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: reconstruct.main(command(cts, tmp_path / "out")))
    *_, first, second, last = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and "1.img.nii.gz" in first and "3.img.nii.gz" in second
    assert "2 cases are left out" in last and finished(tmp_path / "out") == {"2", "4"}
    for case in (1, 3):
        (cts / f"{case}.img.nii.gz").write_bytes(good)
    reconstruct.main(command(cts, tmp_path / "out"))
    assert finished(tmp_path / "out") == {"1", "2", "3", "4"}


def reconstruct_on_rank(rank: int, arguments: list[str]) -> list[str]:
    """The lines in the log of a rank, and the refusal."""
    memory = MemoryHandler(1000, flushLevel=100)
    logger.addHandler(memory)
    error = refusal(lambda: reconstruct.main(arguments))
    return [*(record.getMessage() for record in memory.buffer), error]


def test_broken_files_of_any_rank_are_named_by_the_first(cts, tmp_path):
    """Rank 0 has the CTs 1 and 3, rank 1 has 2 and 4."""
    for case in (2, 4):
        (cts / f"{case}.img.nii.gz").write_bytes(b"no gzip")
    first, second = on_two_ranks(tmp_path, reconstruct_on_rank, command(cts, tmp_path / "out"))
    *_, of_case_2, of_case_4, last = first
    assert "2.img.nii.gz" in of_case_2 and "4.img.nii.gz" in of_case_4
    assert second == [last] and "out: 2 cases are left out, for the reasons above" in last
    (cts / "4.img.nii.gz").write_bytes((cts / "1.img.nii.gz").read_bytes())
    (*_, last), _ = on_two_ranks(tmp_path, reconstruct_on_rank, command(cts, tmp_path / "out"))
    assert "2.img.nii.gz" in last and last.endswith("all other cases are done")
    assert finished(tmp_path / "out") == {"1", "3", "4"}


def test_options_that_no_result_can_have_are_refused_before_a_replacement_is_said(
    cts, tmp_path, capsys
):
    reconstruct.main(command(cts, tmp_path / "out"))
    with pytest.raises(InputError, match="--spacing 0.0 1.0 1.0"):
        reconstruct.main([*command(cts, tmp_path / "out"), "--spacing", "0", "1", "1"])
    with pytest.raises(InputError, match="--label-map: has no effect without --labels"):
        reconstruct.main([*command(cts, tmp_path / "out"), "--label-map", "1=2"])
    assert "replaced" not in capsys.readouterr().err


def test_a_volume_that_cannot_be_written_is_named(cts, tmp_path, capsys):
    (tmp_path / "out" / "2.json").mkdir(parents=True)
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: reconstruct.main(command(cts, tmp_path / "out")))
    error = capsys.readouterr().err
    assert ended.value.code == 2 and "2.json: not written" in error
    names = {path.name for path in (tmp_path / "out").glob("[12].*")}
    assert names == {"1.json", "1.img.nii.gz", "2.json"}


def test_the_files_equal_those_that_are_made_in_turn(cts, tmp_path, monkeypatch):
    reconstruct.main(command(cts, tmp_path / "overlapped"))

    def in_turn(batches, read, compute, write, report):
        for batch in batches:
            report(batch, write(batch, compute(batch, read(batch))))

    monkeypatch.setattr(run_jobs, "overlapped", in_turn)
    computed, reconstructed = [], Codec.reconstruct

    def recorded(codec, placed):
        computed.append(placed)
        return reconstructed(codec, placed)

    monkeypatch.setattr(Codec, "reconstruct", recorded)
    reconstruct.main(command(cts, tmp_path / "in_turn"))
    assert len(computed) == 4 and finished(tmp_path / "in_turn") == {"1", "2", "3", "4"}
    for path in (tmp_path / "in_turn").glob("*.img.nii.gz"):
        assert path.read_bytes() == (tmp_path / "overlapped" / path.name).read_bytes()


def test_a_volume_that_another_command_has_written_meanwhile_is_not_replaced(
    cts, tmp_path, monkeypatch
):
    """Two commands with other settings in one folder, of which each writes while the other runs."""
    run, write, paused = command(cts, tmp_path / "out"), run_jobs.write_result, []

    def write_after_the_other(job, *arguments):
        if not paused:
            paused.append(job)
            reconstruct.main([*run, "--spacing", "5", "5", "5"])
        write(job, *arguments)

    monkeypatch.setattr(overlap, "THREADS", 1)  # the first volume alone is being written
    monkeypatch.setattr(run_jobs, "write_result", write_after_the_other)
    line = refusal(lambda: reconstruct.main(run))
    assert re.search("another command has written 2 with other settings since this one", line)
    sidecars = [json.loads(path.read_text()) for path in (tmp_path / "out").glob("*.json")]
    spacings = sorted(sidecar["settings"]["spacing"][0] for sidecar in sidecars)
    assert spacings == [5.0, 5.0, 5.0, 5.5]  # the first was being written


def test_volumes_of_other_commands_in_the_folder_are_said_where_their_settings_differ(
    cts, tmp_path, capsys
):
    def said(*options: str) -> list[str]:
        reconstruct.main([*command(cts, tmp_path / "out"), *options])
        return [line for line in capsys.readouterr().err.splitlines() if "also holds" in line]

    assert said() == []
    for case in (1, 2, 3):
        (cts / f"{case}.img.nii.gz").rename(cts / f"{case}0.img.nii.gz")
    assert said() == []  # 10, 20, 30 beside 1, 2, 3: of the same settings
    (cts / "4.img.nii.gz").rename(cts / "40.img.nii.gz")
    (line,) = said("--spacing", "5", "5", "5")
    assert "volumes of another command: 4 (1: spacing was [5.5, 5.5, 5.5] and is [5.0," in line


def test_finished_volumes_that_other_settings_replace_are_said(cts, tmp_path, capsys):
    run, other = command(cts, tmp_path / "out"), ["--spacing", "5", "5", "5"]

    def said(*options: str) -> str:
        reconstruct.main([*run, *options])
        lines = capsys.readouterr().err.splitlines()
        return next((line for line in lines if "are replaced: " in line), "")

    assert said() == said() == ""
    assert said(*other).endswith("4 (1: spacing was [5.5, 5.5, 5.5] and is [5.0, 5.0, 5.0])")
    (cts / "2.img.nii.gz").write_bytes((cts / "3.img.nii.gz").read_bytes())
    assert said(*other).endswith("1 (2: its source or outputs have changed)")
