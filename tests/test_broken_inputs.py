"""Every broken input of the corpus ends its command with one line and code 2, and leaves nothing.

What an earlier run has left half-written is passed over: sidecars, records, logs.
"""

import json
from pathlib import Path

import pytest
from broken_inputs import CORPUS
from config_fuzzer import time_limit
from refusals import refused_command

from tubesynth.__main__ import load_command
from tubesynth.data import manifest
from tubesynth.inference.job import Job
from tubesynth.runtime.run_log import _drop_lines_after

SECONDS = 10


@pytest.mark.parametrize("name", CORPUS)
def test_a_broken_input_is_refused_in_one_line_and_leaves_nothing(name, tmp_path, capfd):
    broken = CORPUS[name]
    arguments = [str(argument) for argument in broken.make(tmp_path)]
    before = contents(tmp_path)
    command = load_command(broken.command)
    with time_limit(SECONDS):
        message = refused_command(lambda: command.main(arguments), capfd)
    for word in broken.words:
        assert word in message, message
    for path in contents(tmp_path) - before:
        assert path.name in ("manifest.json", ".lock", "out") or "good" in path.name, path
        if path.name == "manifest.json":
            assert json.loads(path.read_text())["cases"].keys() <= {"good"}


def contents(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if not path.is_dir()}


def test_the_corpus_has_at_least_150_inputs():
    assert len(CORPUS) >= 150


DAMAGED = {
    "half": b'{"source": null, ',
    "empty": b"",
    "list": b"[]",
    "brackets": b"[" * 100_000,
    "binary": bytes(range(256)),
    "latin-1": b'{"source": "\xe9"}',
    "other": b'{"source": null, "settings": [1]}',
}


@pytest.mark.parametrize("raw", DAMAGED.values(), ids=DAMAGED)
def test_a_job_with_a_damaged_sidecar_is_done_again(raw, tmp_path):
    job = Job(tmp_path, "broken_s0", None, {"seed": 1})
    (tmp_path / "broken_s0.img.nii.gz").write_bytes(b"")
    (tmp_path / "broken_s0.json").write_bytes(raw)
    assert not job.is_finished()
    record = {"source": None, "settings": {"seed": 1}, "source_sha256": None}
    (tmp_path / "broken_s0.json").write_text(json.dumps(record))
    assert job.is_finished()


@pytest.mark.parametrize("raw", DAMAGED.values(), ids=DAMAGED)
def test_a_case_with_a_damaged_record_is_prepared_again(raw, tmp_path):
    manifest.write(tmp_path, {"seed": 1}, {})
    (tmp_path / ".records").mkdir()
    (tmp_path / ".records" / "broken.json").write_bytes(raw)
    assert manifest.open_folder(tmp_path, {"seed": 1}) == {}


def test_lines_of_a_log_that_no_run_has_written_are_dropped(tmp_path):
    lines = [b'{"step": 1, "loss": 2.0}', *DAMAGED.values(), b'{"step": "x"}', b'{"step": 9}', b"3"]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    _drop_lines_after(tmp_path / "metrics.jsonl", 5, False)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b'{"step": 1, "loss": 2.0}\n'
